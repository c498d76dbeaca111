"""The rows of the README's table of results: the row of a results file, and its command."""

from typing import NamedTuple

MEMORY = "python -m benchmarks.enigma.memory"
ROUND_TRIP = "python -m benchmarks.enigma.round_trip"
KILLS = "python -m benchmarks.training.kills"
ODD_DOCUMENTS = (
    "python -m benchmarks.flow.odd_documents --language-model models/sanguo/lm"
    " --shards data/sanguo/shards --documents data/sanguo/documents/test.parquet"
)
QUALITY = "python -m benchmarks.language_model.quality data/wiki-zh/shards 1M-983k"
STATES = "python -m benchmarks.state_tracking.tracking s5"
DATA = "python -m benchmarks.data.speed --corpus wiki.parquet"


class Words(NamedTuple):
    """One text in both languages of the READMEs."""

    english: str
    chinese: str


class Headline(NamedTuple):
    """One row of the table.

    `row` and, where the file has several rows of that name, `peer` select the row of the results
    file; `what`, `unit`, `peer_name` and `target` are its text.
    """

    results: str
    row: str
    command: str
    what: Words
    unit: Words
    peer_name: Words | None = None
    peer: str | None = None
    target: Words | None = None


MIB = Words("MiB", "MiB")
BITS = Words(
    "Bits per character, Wikipedia sample, 983 k tokens, 1 M parameters (without embeddings "
    "and n-grams)",
    "维基百科样本每字比特数，98.3 万词元，100 万参数（不计嵌入与 n 元统计）",
)
QUALITY_ROW = "1M-983k, enigma, memory and pointer against"

HEADLINES = (
    Headline(
        "lm_quality",
        f"{QUALITY_ROW} modern, all ids, test",
        QUALITY,
        BITS,
        Words("", ""),
        Words("a modern GPT, unchanged", "未加改动的现代 GPT"),
    ),
    Headline(
        "lm_quality",
        f"{QUALITY_ROW} modern, memory, test",
        QUALITY,
        Words("The same, the peer with our n-gram memory", "同上，对照也带同样的 n 元记忆"),
        Words("", ""),
        Words("with the memory", "带记忆"),
    ),
    Headline(
        "state_tracking_lead",
        "s5, right on texts of 256, worst seed",
        STATES,
        Words(
            "Products of 256 permutations (S5), trained on 64: right answers",
            "训练长度 64，测试 256 个置换之积（S5）的正确率",
        ),
        Words("", ""),
        Words("the best of three transformers", "三种 Transformer 中最好的"),
    ),
    Headline(
        "memory",
        "peak, reversible, depth 16",
        MEMORY,
        Words(
            "Memory of a training step beyond parameters and gradients, 16 layers, 8 blocks",
            "16 层、8 个可逆块：单步训练的内存峰值（不计参数与梯度）",
        ),
        MIB,
        Words("plain", "普通反向传播"),
        peer="plain",
    ),
    Headline(
        "memory",
        "step, reversible, depth 16",
        MEMORY,
        Words("Time of that step", "该步耗时"),
        Words("ms", "ms"),
        Words("plain", "普通反向传播"),
        peer="plain",
    ),
    Headline(
        "memory",
        "peak, reversible, one block, depth 64",
        MEMORY,
        Words(
            "Memory beyond parameters and gradients, 64 layers, one block",
            "64 层、一个可逆块时的内存峰值（不计参数与梯度）",
        ),
        MIB,
        Words("4 layers", "4 层"),
    ),
    Headline(
        "memory",
        "peak, reversible, depth 64",
        MEMORY,
        Words(
            "Memory beyond parameters and gradients, 64 layers, 32 blocks",
            "64 层、32 个可逆块时的内存峰值（不计参数与梯度）",
        ),
        MIB,
        Words("4 layers, 2 blocks", "4 层、2 个可逆块"),
    ),
    Headline(
        "round_trip",
        "core, lifting rotors, exact mode, 1000 steps, float32, x to y to x",
        ROUND_TRIP,
        Words(
            "Relative round-trip error of the core after 1,000 steps, exact mode",
            "精确模式，训练 1,000 步后核心的往返相对误差",
        ),
        Words("", ""),
    ),
    Headline(
        "odd_documents",
        "mean AUROC",
        ODD_DOCUMENTS,
        Words("Planted odd documents ranked above normal ones", "植入的异常文档排在正常文档之前"),
        Words("AUROC", "AUROC"),
        Words("Gaussian of the same states", "同样状态的高斯分布"),
        peer="Gaussian, same states",
        target=Words(">= 0.97, above the Gaussian", ">= 0.97，且高于高斯分布"),
    ),
    Headline(
        "data",
        "text to ids, Wikipedia",
        DATA,
        Words("Text to token ids", "文本转词元 id"),
        Words("MB/s", "MB/s"),
        Words("`encode_batch_fast`", "`encode_batch_fast`"),
        peer="encode_batch_fast",
    ),
    Headline(
        "data",
        "raw text to clean shards (the peer finds equal sequences only)",
        DATA,
        Words("Raw text to clean shards, 11.3 MB", "原始文本到干净分片，11.3 MB"),
        Words("s", "s"),
        Words("`datasets` and a set", "`datasets` 加集合"),
    ),
    Headline(
        "kills",
        "SIGKILL of the whole tree of dvc repro, weights equal bit for bit",
        KILLS,
        Words(
            "Weights after 20 kills of one training, against an undisturbed one",
            "一次训练被强制终止 20 次后，与未受干扰的训练相比",
        ),
        Words("kills: the same bits", "次：逐位一致"),
    ),
)
