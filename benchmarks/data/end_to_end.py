"""Compare our stages from text to clean shards with the pipeline that most people write."""

import contextlib
import io
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

        def naive() -> None:
            output = directory / f"naive-{next(turn)}"
            _naive(str(directory / "raw" / "part-*.parquet"), output, tokenizer)

        times_s = median_times_s([ours, naive], repeats=3)
    return [
        row(
            "raw text to clean shards (ours also finds near duplicates and near overlap)",
            times_s[0],
            "s",
            peer="datasets.map + group_texts + set",
            peer_value=times_s[1],
            target="<= 1/20",
            met=times_s[1] / times_s[0] >= 20,
        )
    ]


def _naive(files: str, output: Path, tokenizer: Any) -> None:
    """Tokenize, split, pack, remove exact overlap, save."""
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
    clean_train.save_to_disk(str(output / "train"))
    packed["test"].save_to_disk(str(output / "test"))
