"""Drop every sequence that occurs in a later split: `python -m pipelines.decontaminate`.

A sequence is removed if a later split has it (`exact`), has most of its wording (`near`), or
has a document with the same title as one that it holds a part of (`title`). Train loses what
occurs in validation or test; validation loses what occurs in test, as it chooses the
checkpoint. Test is never changed: what it measures must not depend on the rest. What was
removed is kept in `removed.parquet`.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from enigma.language_model.word_pieces import join_word_pieces
from pipelines.base.artifacts import publish_directory, read_manifest, write_json, write_manifest
from pipelines.base.errors import UserError
from pipelines.base.part_workers import map_parts
from pipelines.base.resumable_parts import resumable
from pipelines.base.run_stage import progress, run_stage
from pipelines.base.workspace import SPLITS, Workspace
from pipelines.data.overlap.matches import Lookup, find_shared, read_matches
from pipelines.data.overlap.reference import Match
from pipelines.data.shards import (
    DOCUMENT_SCHEMA,
    SEQUENCE_SCHEMA,
    ShardReader,
    ShardWriter,
    read_blocks,
    shard_paths,
)
from pipelines.data.text.folding import title_key
from pipelines.data.text.vocabulary import load_tokenizer
from pipelines.params import DecontaminateParams, load_params

log = logging.getLogger(__name__)

# What each split must not share a sequence with.
LATER_SPLITS = {"validation": ("test",), "train": ("validation", "test")}
METHODS = ("exact", "near", "title")
# Facts of `tokenize` that still describe the shards.
KEPT_FACTS = (
    "sequence_length",
    "sequences_per_shard",
    "vocabulary",
    "vocabulary_size",
    "vocabulary_sha256",
    "lower_case",
    "eos_token_id",
    "unk_token_id",
)
REMOVED_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("source_sequence", pa.int64()),
        ("matched_split", pa.string()),
        ("matched_sequence", pa.int64()),
        ("method", pa.string()),
        ("containment", pa.float64()),
        ("tokens", pa.list_(pa.uint16())),
        ("text", pa.string()),
    ]
)
ROWS_PER_BATCH = 8192

# Removed sequences by split, later split and method.
Counts = Counter[tuple[str, str, str]]


def decontaminate(
    params: DecontaminateParams,
    tokens: Path,
    output: Path,
    report: Path,
    *,
    work: Path | None = None,
    workers: int = 1,
) -> None:
    """Copy the sequences that no later split shares.

    Args:
        params: The section `decontaminate`.
        tokens: The output of `tokenize`.
        output: The directory to publish; layout in `pipelines/data/shards.py`.
        report: The JSON file with the counts, before and after.
        work: Where finished parts are kept if the stage is killed; by default beside `output`.
        workers: Processes; the output does not depend on it.

    Raises:
        UserError: If a window would be longer than a sequence, or an unfinished run has
            another number of parts.
    """
    manifest = read_manifest(tokens)
    length = int(manifest["sequence_length"])
    if params.window_characters > length:
        raise UserError(
            f"decontaminate.window_characters: expected at most the sequence length {length}, "
            f"got {params.window_characters}",
            "lower it in params.yaml",
        )
    facts = {name: manifest[name] for name in KEPT_FACTS}
    counts: Counts = Counter()
    with (
        resumable(
            output,
            work,
            stage="decontaminate",
            fingerprint={"tokens": manifest["root"], "params": params.model_dump()},
            parts=sum(len(shard_paths(tokens, split)) for split in LATER_SPLITS),
        ) as unfinished,
        publish_directory(output) as building,
    ):
        titles: dict[str, set[str]] = {}
        with pq.ParquetWriter(
            building / "removed.parquet", REMOVED_SCHEMA, compression="zstd"
        ) as removed:
            # Test first: validation is compared with it, and train with what is left of both.
            for split in reversed(SPLITS):
                reader = ShardReader(tokens, split)
                later = LATER_SPLITS.get(split, ())
                by_title, titles[split] = _copy_documents(reader, titles, later, building)
                paths = reader.paths if later else []
                lookups = [Lookup(path, building, later, length, params) for path in paths]
                label = f"shared-{split}"
                found = map_parts(find_shared, lookups, unfinished, label=label, workers=workers)
                _copy_clean(
                    reader,
                    found,
                    by_title,
                    directory=building,
                    facts=facts,
                    removed=removed,
                    counts=counts,
                )
        overlap = overlap_report(params, manifest["sequences"], counts)
        sequences = {split: overlap[split]["after"] for split in SPLITS}
        write_manifest(building, stage="decontaminate", facts={**facts, "sequences": sequences})
    write_json(report, overlap)
    log.info("train: %(before)d sequences, %(removed)d removed, %(after)d left", overlap["train"])


def _copy_documents(
    reader: ShardReader, titles: dict[str, set[str]], later: Iterable[str], directory: Path
) -> tuple[dict[int, str], set[str]]:
    """Copy the table of documents without those whose title a later split has.

    Returns:
        For each sequence that holds a part of such a document, the later split; and the keys
        of the remaining titles, for a split that others are compared with.
    """
    by_title: dict[int, str] = {}
    left: set[str] = set()
    name = f"{reader.split}.documents.parquet"
    with (
        pq.ParquetFile(reader.directory / name, pre_buffer=False) as source,
        pq.ParquetWriter(directory / name, DOCUMENT_SCHEMA, compression="zstd") as target,
    ):
        for batch in source.iter_batches(ROWS_PER_BATCH):
            keys = [title_key(title) for title in batch["title"].to_pylist()]
            found = [next((split for split in later if key in titles[split]), None) for key in keys]
            for row in np.flatnonzero([split is not None for split in found]).tolist():
                first, tokens = batch["start_token"][row].as_py(), batch["num_tokens"][row].as_py()
                last = (first + max(tokens, 1) - 1) // reader.sequence_length
                for sequence in range(first // reader.sequence_length, last + 1):
                    by_title[sequence] = str(found[row])
            kept = pa.array([split is None for split in found], pa.bool_())
            target.write_table(pa.Table.from_batches([batch], DOCUMENT_SCHEMA).filter(kept))
            if reader.split != "train":
                left |= {key for key, split in zip(keys, found, strict=True) if split is None}
    return by_title, left - {""}


def _copy_clean(
    reader: ShardReader,
    found: list[Path],
    by_title: dict[int, str],
    *,
    directory: Path,
    facts: dict[str, Any],
    removed: pq.ParquetWriter,
    counts: Counts,
) -> None:
    """Copy a split without the sequences that were found; keep those in `removed.parquet`."""
    writer = ShardWriter(
        directory,
        reader.split,
        sequence_length=reader.sequence_length,
        sequences_per_shard=int(facts["sequences_per_shard"]),
    )
    keep = np.ones(len(reader), dtype=bool)
    start = 0
    label = f"copy {reader.split}"
    for number, path in enumerate(progress(reader.paths, total=None, unit="shard", label=label)):
        size = reader.sizes[number]
        matches = _with_titles(read_matches(found[number]) if found else [], by_title, start, size)
        gone = start + np.array([match.sequence for match in matches], np.int64)
        keep[gone] = False
        counts.update((reader.split, match.split, match.method) for match in matches)
        if matches:
            removed.write_table(_removals(matches, reader, gone, str(facts["vocabulary"])))
        for block_NL in read_blocks(path, reader.sequence_length):
            writer.append(block_NL[keep[start : start + len(block_NL)]])
            start += len(block_NL)
    _copy_sequences(reader, keep, directory)


def _with_titles(
    matches: list[Match], by_title: dict[int, str], start: int, count: int
) -> list[Match]:
    """Add the sequences of documents with a shared title that do not match otherwise, in order."""
    known = {match.sequence for match in matches}
    also = [
        Match(sequence - start, split, -1, "title", 0.0)
        for sequence, split in by_title.items()
        if start <= sequence < start + count and sequence - start not in known
    ]
    return sorted([*matches, *also], key=lambda match: match.sequence)


def _removals(
    matches: list[Match], reader: ShardReader, sequences: npt.NDArray[np.int64], vocabulary: str
) -> pa.Table:
    tokenizer = load_tokenizer(vocabulary)
    rows = [
        {
            "split": reader.split,
            "source_sequence": sequence,
            "matched_split": match.split,
            "matched_sequence": match.matched,
            "method": match.method,
            "containment": match.containment,
            "tokens": tokens,
            "text": join_word_pieces(tokenizer, tokens),
        }
        for match, sequence, tokens in zip(
            matches, sequences.tolist(), reader.gather(sequences).tolist(), strict=True
        )
    ]
    return pa.Table.from_pylist(rows, schema=REMOVED_SCHEMA)


def _copy_sequences(reader: ShardReader, keep: npt.NDArray[np.bool_], directory: Path) -> None:
    """Copy the side table of the sequences that are kept."""
    name = f"{reader.split}.sequences.parquet"
    start = 0
    with (
        pq.ParquetFile(reader.directory / name, pre_buffer=False) as source,
        pq.ParquetWriter(directory / name, SEQUENCE_SCHEMA, compression="zstd") as target,
    ):
        for batch in source.iter_batches(ROWS_PER_BATCH):
            mine = pa.array(keep[start : start + batch.num_rows])
            target.write_table(pa.Table.from_batches([batch], SEQUENCE_SCHEMA).filter(mine))
            start += batch.num_rows


def overlap_report(
    params: DecontaminateParams, before: dict[str, int], counts: Counts
) -> dict[str, Any]:
    """Count what the published system counted, per split and method.

    Args:
        params: The section `decontaminate`.
        before: Sequences per split before anything was removed.
        counts: The sequences removed.

    Returns:
        For every split `before`, `removed`, `after`, `removed_percent`, and in
        `shared_with` the sequences by the split that they match best and by method.
    """
    report: dict[str, Any] = {
        "window_characters": params.window_characters,
        "max_containment": params.max_containment,
    }
    for split in SPLITS:
        shared = {
            other: {method: counts[split, other, method] for method in METHODS}
            for other in LATER_SPLITS.get(split, ())
        }
        gone = sum(sum(by_method.values()) for by_method in shared.values())
        report[split] = {
            "before": before[split],
            "removed": gone,
            "after": before[split] - gone,
            "removed_percent": round(100 * gone / max(before[split], 1), 4),
            "shared_with": shared,
        }
    return report


def main() -> None:
    """Run the stage for the profile in use."""
    params = load_params()
    workspace = Workspace(params.name)
    decontaminate(
        params.profile.decontaminate,
        workspace.tokens,
        workspace.shards,
        workspace.overlap_report,
        work=workspace.runs / f"{params.name}-decontaminate",
        workers=params.profile.workers,
    )


if __name__ == "__main__":
    run_stage(main)
