"""Compare our stages from text to clean shards with the pipeline that most people write.

Two peers, both with `datasets` and the tokenizer of Hugging Face. The first one tokenizes, splits,
packs and drops train sequences that equal a held-out one: less than ours does. The second one
also looks for near overlap: it drops every train sequence that shares `NEAR_WINDOWS`
consecutive windows of `WINDOW` tokens with held-out text, which it keeps in a Python set (as
decontamination by n-grams does, Brown et al., "Language Models are Few-Shot Learners", 2020,
appendix C). It folds no characters, and finds no near duplicates or coverage, as ours does.
"""

import contextlib
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.record import median_times_s, row
from pipelines.clean import clean
from pipelines.data.text.vocabulary import load_tokenizer
from pipelines.decontaminate import decontaminate
from pipelines.ingest import ingest
from pipelines.params import load_params
from pipelines.tokenize import tokenize

LENGTH = 256
WINDOW, NEAR_WINDOWS = 8, 23


def end_to_end(corpus: Path) -> list[dict[str, Any]]:
    """Turn raw parquet into decontaminated sequences on disk."""
    import datasets

    datasets.disable_progress_bars()
    profile = load_params().profile
    tokenizer = load_tokenizer("bert-base-chinese")
    with TemporaryDirectory() as name:
        directory = Path(name)
        ingest(profile.ingest.model_copy(update={"source": str(corpus)}), directory / "raw")
        turn = iter(range(1000))

        def ours() -> None:
            output = directory / f"ours-{next(turn)}"
            with contextlib.redirect_stderr(io.StringIO()):
                clean(profile.clean, directory / "raw", output / "documents")
                tokenize(profile.tokenize, output / "documents", output / "tokens")
                decontaminate(
                    profile.decontaminate,
                    output / "tokens",
                    output / "shards",
                    output / "overlap.json",
                )

        def naive(near: bool) -> None:
            output = directory / f"naive-{next(turn)}"
            _naive(str(directory / "raw" / "part-*.parquet"), output, tokenizer, near=near)

        times_s = median_times_s([ours, lambda: naive(False), lambda: naive(True)], repeats=3)
    what = "raw text to clean shards"
    peers = (("equal sequences only", "set"), ("near overlap too", "set of 8-grams"))
    return [
        row(
            f"{what} (the peer finds {finds})",
            times_s[0],
            "s",
            peer=f"datasets.map + group_texts + {kept}",
            peer_value=peer_s,
            target="<= 1/9",
            met=peer_s / times_s[0] >= 9,
        )
        for (finds, kept), peer_s in zip(peers, times_s[1:], strict=True)
    ]


def _naive(files: str, output: Path, tokenizer: Any, *, near: bool) -> None:
    """Tokenize, split, pack, remove exact overlap (and near overlap), save."""
    import datasets

    documents = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(output / "cache")
    )

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return dict(tokenizer([f"{text}[SEP]" for text in batch["text"]], add_special_tokens=False))

    def group_texts(examples: dict[str, Any]) -> dict[str, Any]:
        joined = {key: list(chain(*examples[key])) for key in examples}
        total = len(joined["input_ids"]) // LENGTH * LENGTH
        return {
            key: [tokens[i : i + LENGTH] for i in range(0, total, LENGTH)]
            for key, tokens in joined.items()
        }

    encoded = documents.map(encode, batched=True, remove_columns=documents.column_names)
    halves = encoded.train_test_split(test_size=0.1, seed=0)
    packed = halves.map(group_texts, batched=True)
    held_out = {tuple(ids) for ids in packed["test"]["input_ids"]}
    clean_train = packed["train"].filter(
        lambda example: tuple(example["input_ids"]) not in held_out
    )
    if near:
        windows = {window for ids in packed["test"]["input_ids"] for window in _windows(ids)}
        clean_train = clean_train.filter(
            lambda example: not _shares_run(example["input_ids"], windows)
        )
    clean_train.save_to_disk(str(output / "train"))
    packed["test"].save_to_disk(str(output / "test"))


def _windows(ids: list[int]) -> Iterator[tuple[int, ...]]:
    return zip(*(ids[start:] for start in range(WINDOW)), strict=False)


def _shares_run(ids: list[int], windows: set[tuple[int, ...]]) -> bool:
    run = 0
    for window in _windows(ids):
        run = run + 1 if window in windows else 0
        if run == NEAR_WINDOWS:
            return True
    return False
