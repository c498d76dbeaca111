"""How the language models of `benchmarks/language_model/quality.py` perform in use.

    OMP_NUM_THREADS=1 python -m benchmarks.language_model.use data/wiki-zh/shards 1M-983k

It takes the weights of seed 0 at each entrant's best rate, and measures three things.
Long texts: trained at 256 tokens, what does a token cost with up to 1,023 tokens of context, and
what with 128 to 255 (windows of 256, stride 128)? Cloze: which of four clauses continues a test
document (`cloze.py`), asked by lm-eval as an outsider would? Generation: how varied and how
repetitive are continuations of test texts, compared with the true ones? Samples are printed.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.language_model.classes import PredictedClasses
from benchmarks.language_model.cloze import ITEMS, TASK, write_items
from benchmarks.language_model.entrants import make
from benchmarks.language_model.quality import check_shards, weights_of
from benchmarks.language_model.quality_table import SETTINGS, chosen, job_of, results
from benchmarks.record import row, write
from enigma.generation import Sampling
from enigma.language_model.word_pieces import join_word_pieces
from pipelines.base.errors import UserError
from pipelines.base.run_stage import progress, run_stage
from pipelines.data.shards import ShardReader
from pipelines.data.text.shard_vocabulary import shard_tokenizer
from pipelines.language_model.continuations import distinct_2, repetition_rate

LONG, SHORT, STRIDE = 1024, 256, 128
MODELS = ("enigma", "gpt2", "llama")
"""Those that are models of transformers, as `generate` and lm-eval need."""
EXTRAPOLATING = ("enigma", "llama")
"""GPT-2 has learned positions, which end at the training length."""
PROMPTS, PROMPT_TOKENS = 16, 32
SAMPLING = Sampling(max_new_tokens=64)


def over_ids(model: Any, classes: PredictedClasses) -> Any:
    """Turn a model over classes into one over ids, with the same probabilities.

    Args:
        model: A model of transformers; changed in place.
        classes: What it predicts.

    Returns:
        The model in evaluation mode, with an embedding and a head of their own: an id of the last
        class has a bias of minus the logarithm of their number, one that is impossible of -inf.
    """
    ids = len(classes.class_of_id_V)
    of_id_V = torch.from_numpy(classes.class_of_id_V)
    tokens: nn.Embedding = model.get_input_embeddings()
    embedding = nn.Embedding(ids, tokens.embedding_dim)
    head = nn.Linear(tokens.embedding_dim, ids)
    bias_V = -torch.from_numpy(classes.extra_nats(classes.class_of_id_V)).float()
    bias_V[~torch.from_numpy(classes.possible_V)] = -torch.inf
    with torch.no_grad():
        embedding.weight.copy_(tokens.weight[of_id_V])
        head.weight.copy_(model.get_output_embeddings().weight[of_id_V])
        head.bias.copy_(bias_V)
    model.config.vocab_size, model.config.tie_word_embeddings = ids, False
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(head)
    return model.eval()


def best_models(shards: Path, setting: str) -> dict[str, Any]:
    """Load each model with the weights of seed 0 at its best rate.

    Raises:
        UserError: If the sweep of a model is not over, or its weights are not here.
    """
    classes = PredictedClasses.reachable(shards)
    found = {}
    for name in MODELS:
        cell = chosen(results(setting), name)
        if not cell or not weights_of(job_of(cell[0])).is_file():
            raise UserError(
                f"{setting}: expected the weights of {name} after a complete sweep, found none",
                f"run `python -m benchmarks.language_model.quality {shards} {setting}`; if only "
                "the weights are missing, delete the file of the result first",
            )
        model = make(name, SETTINGS[setting].size, classes.count, 0)
        load_model(model, str(weights_of(job_of(cell[0]))))
        found[name] = over_ids(model, classes)
    return found


def token_nll(model: Any, ids_BL: Tensor) -> Tensor:
    """Nats of every token except the first, given those before it: `(B, L - 1)`."""
    with torch.no_grad():
        logits_BLV = model(input_ids=ids_BL, use_cache=False).logits
    flat = cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten(), reduction="none"
    )
    return flat.view(len(ids_BL), -1)


def length_rows(models: dict[str, Any], reader: ShardReader) -> list[dict[str, Any]]:
    """Score the last 256 tokens of texts of 1,024, by the context that the model sees."""
    count = len(reader) // (LONG // SHORT)
    texts_NL = reader.gather(np.arange(count * LONG // SHORT)).reshape(count, LONG)
    rows = []
    for name, model in models.items():
        long, short = [], []
        for text_L in progress(texts_NL, total=count, unit="text", label=f"length {name}"):
            ids_1L = torch.from_numpy(text_L.astype(np.int64))[None]
            # Windows that end at 896 and at 1,024; their second halves are scored.
            ends = range(LONG - SHORT + STRIDE, LONG + 1, STRIDE)
            windows = torch.cat([ids_1L[:, end - SHORT : end] for end in ends])
            short.append(token_nll(model, windows)[:, -STRIDE:].mean().item())
            if name in EXTRAPOLATING:
                long.append(token_nll(model, ids_1L)[:, -SHORT:].mean().item())
        with_short = float(np.mean(short))
        title = f"{name}, nats per token, context of {{}} tokens"
        if long:
            with_long = float(np.mean(long))
            rows.append(
                row(
                    title.format(f"{LONG - SHORT} to {LONG - 1}"),
                    with_long,
                    "nats",
                    peer=f"{STRIDE} to {SHORT - 1}",
                    peer_value=with_short,
                    target="<= 1x" if name == "enigma" else None,
                    met=with_long <= with_short if name == "enigma" else None,
                )
            )
        else:
            rows.append(row(title.format(f"{STRIDE} to {SHORT - 1}"), with_short, "nats"))
    return rows


def cloze_rows(models: dict[str, Any], shards: Path) -> list[dict[str, Any]]:
    """The share of clauses that lm-eval finds, by total and by mean probability."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    write_items(shards.parent / "documents" / "test.parquet")
    tokenizer = shard_tokenizer(shards)
    rows = [row("cloze, chance", 0.25, ""), row("cloze, items", ITEMS, "")]
    for name, model in models.items():
        found = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
            tasks=[TASK.stem],
            task_manager=TaskManager(include_path=str(TASK.parent), include_defaults=False),
            bootstrap_iters=0,
        )["results"][TASK.stem]
        rows += [
            row(f"{name}, cloze, {what}", found[f"{key},none"], "share")
            for key, what in (("acc", "by probability"), ("acc_norm", "by probability per byte"))
        ]
    return rows


def generation_rows(models: dict[str, Any], reader: ShardReader) -> list[dict[str, Any]]:
    """Measure variety and repetition of the models' continuations and of the true ones."""
    tokenizer = shard_tokenizer(reader.directory)
    texts_NL = torch.from_numpy(reader.gather(np.arange(PROMPTS)).astype(np.int64))
    end = PROMPT_TOKENS + SAMPLING.max_new_tokens
    continuations = {"the true text": texts_NL[:, PROMPT_TOKENS:end].tolist()}
    for name, model in models.items():
        torch.manual_seed(SAMPLING.seed)
        output_NL = model.generate(
            texts_NL[:, :PROMPT_TOKENS],
            attention_mask=torch.ones(PROMPTS, PROMPT_TOKENS, dtype=torch.long),
            do_sample=True,
            temperature=SAMPLING.temperature,
            top_k=SAMPLING.top_k,
            top_p=SAMPLING.top_p,
            max_new_tokens=SAMPLING.max_new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        continuations[name] = output_NL[:, PROMPT_TOKENS:].tolist()
        for i in range(2):
            prompt = join_word_pieces(
                tokenizer, texts_NL[i, :PROMPT_TOKENS], skip_special_tokens=True
            )
            added = join_word_pieces(tokenizer, continuations[name][i], skip_special_tokens=True)
            print(f"{name}: {prompt} | {added}")
    rows = []
    for name, texts in continuations.items():
        rows.append(row(f"{name}, distinct bigrams", distinct_2(texts), "share"))
        rows.append(row(f"{name}, repeated 4-grams", repetition_rate(texts), "share"))
    return rows


def main() -> None:
    """Measure all three, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shards", type=Path, help="directory of final shards, 256 tokens each")
    parser.add_argument("setting", choices=SETTINGS, help="size and tokens")
    arguments = parser.parse_args()
    check_shards(arguments.shards)
    models = best_models(arguments.shards, arguments.setting)
    reader = ShardReader(arguments.shards, "test")
    rows = length_rows(models, reader) + generation_rows(models, reader)
    write("lm_use", rows + cloze_rows(models, arguments.shards), packages=("lm-eval",))


if __name__ == "__main__":
    run_stage(main)
