"""Drop every sequence that occurs in a later split: `python -m pipelines.decontaminate`.

A sequence goes if a later split has it (`exact`), has most of its wording (`near`), or has
a document of the same title as one of which it holds a part (`title`).
Train loses what occurs in validation or test; validation loses what occurs in
test, as it chooses the checkpoint. Test is never touched: what it measures must
not depend on the rest. What was dropped is kept in `removed.parquet`.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.artifacts import publish_directory, read_manifest, write_json, write_manifest
from pipelines.errors import UserError
from pipelines.normalisation import title_key
from pipelines.overlap import Match, Reference
from pipelines.params import DecontaminateParams, load_params
from pipelines.shards import SEQUENCE_SCHEMA, ShardReader, ShardWriter, Tokens
from pipelines.stage import progress, run_stage
from pipelines.vocabulary import decode_text, load_tokenizer
from pipelines.workspace import SPLITS, Workspace

log = logging.getLogger(__name__)

REPORT_NAME = "overlap.json"
# What each split must not share a sequence with.
LATER_SPLITS = {"validation": ("test",), "train": ("validation", "test")}
METHODS = ("exact", "near", "title")
# Facts of `tokenize` that describe the shards still.
KEPT_FACTS = (
    "sequence_length",
    "sequences_per_shard",
    "vocabulary",
    "vocabulary_size",
    "vocabulary_sha256",
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

Removal = dict[str, Any]


def decontaminate(params: DecontaminateParams, tokens: Path, output: Path, report: Path) -> None:
    """Copy the sequences that no later split shares.

    Args:
        params: The section `decontaminate`.
        tokens: The output of `tokenize`.
        output: The directory to publish; layout in `pipelines/shards.py`.
        report: The JSON file with the counts, before and after.

    Raises:
        UserError: If a window would be longer than a sequence.
    """
    manifest = read_manifest(tokens)
    length = int(manifest["sequence_length"])
    if params.window_tokens > length:
        raise UserError(
            f"decontaminate.window_tokens: expected at most the sequence length {length}, "
            f"came {params.window_tokens}",
            "lower it in params.yaml",
        )
    facts = {name: manifest[name] for name in KEPT_FACTS}
    with publish_directory(output) as building:
        removed: list[Removal] = []
        kept: dict[str, Tokens] = {}
        sequences: dict[str, int] = {}
        titles: dict[str, set[str]] = {}
        # Test first: validation is compared with it, and train with what is left of both.
        for split in reversed(SPLITS):
            reference = Reference(
                {name: kept[name] for name in LATER_SPLITS.get(split, ())}, params.window_tokens
            )
            reader = ShardReader(tokens, split)
            documents, by_title = _shared_titles(reader, titles, LATER_SPLITS.get(split, ()))
            removals = _copy_clean(
                reader, reference, by_title, params=params, directory=building, facts=facts
            )
            sequences[split] = len(reader) - len(removals)
            removed += removals
            if split != "train":
                kept[split] = _without(reader, removals)
            titles[split] = {title_key(title) for title in documents["title"].to_pylist()} - {""}
            pq.write_table(documents, building / f"{split}.documents.parquet", compression="zstd")
        _write_removed(building / "removed.parquet", removed, str(manifest["vocabulary"]))
        counts = overlap_report(params, manifest["sequences"], removed)
        write_manifest(
            building,
            stage="decontaminate",
            facts={**facts, "sequences": {split: sequences[split] for split in SPLITS}},
        )
    write_json(report, counts)
    log.info("train: %(before)d sequences, %(removed)d removed, %(after)d left", counts["train"])


def _shared_titles(
    reader: ShardReader, titles: dict[str, set[str]], later: Iterable[str]
) -> tuple[pa.Table, dict[int, str]]:
    """Find the documents whose title a later split has.

    Returns:
        The other documents, and by sequence that holds a part of a shared one the split.
    """
    documents = reader.documents()
    keys = [title_key(title) for title in documents["title"].to_pylist()]
    found = [next((split for split in later if key in titles[split]), None) for key in keys]
    shared = pa.array([split is not None for split in found], pa.bool_())
    by_title: dict[int, str] = {}
    for document, split in zip(
        documents.filter(shared).to_pylist(), filter(None, found), strict=True
    ):
        first, tokens = document["start_token"], document["num_tokens"]
        last = (first + max(tokens, 1) - 1) // reader.sequence_length
        for sequence in range(first // reader.sequence_length, last + 1):
            by_title[sequence] = split
    return documents.filter(pc.invert(shared)), by_title


def _copy_clean(
    reader: ShardReader,
    reference: Reference,
    by_title: dict[int, str],
    *,
    params: DecontaminateParams,
    directory: Path,
    facts: dict[str, Any],
) -> list[Removal]:
    """Copy a split without the sequences that the reference has; return those."""
    writer = ShardWriter(
        directory,
        reader.split,
        sequence_length=reader.sequence_length,
        sequences_per_shard=int(facts["sequences_per_shard"]),
    )
    table = reader.sequences()
    keep = np.ones(len(reader), dtype=bool)
    removed: list[Removal] = []
    start = 0
    label = f"decontaminate {reader.split}"
    for chunk_NL in progress(reader.chunks(), total=None, unit="shard", label=label):
        matches = reference.matches(chunk_NL, max_containment=params.max_containment)
        for match in _with_titles(matches, by_title, start, len(chunk_NL)):
            source = table["source_sequence"][start + match.sequence].as_py()
            removed.append(_removal(match, reader.split, source, chunk_NL[match.sequence].tolist()))
            keep[start + match.sequence] = False
        writer.append(chunk_NL[keep[start : start + len(chunk_NL)]])
        start += len(chunk_NL)
    left = table.filter(pa.array(keep)).cast(SEQUENCE_SCHEMA)
    pq.write_table(left, directory / f"{reader.split}.sequences.parquet", compression="zstd")
    return removed


def _with_titles(
    matches: list[Match], by_title: dict[int, str], start: int, count: int
) -> list[Match]:
    """Add the sequences of shared documents that are no match otherwise, in order."""
    known = {match.sequence for match in matches}
    also = [
        Match(sequence - start, split, -1, "title", 0.0)
        for sequence, split in by_title.items()
        if start <= sequence < start + count and sequence - start not in known
    ]
    return sorted([*matches, *also], key=lambda match: match.sequence)


def _removal(match: Match, split: str, source_sequence: int, tokens: list[int]) -> Removal:
    return {
        "split": split,
        "source_sequence": source_sequence,
        "matched_split": match.split,
        "matched_sequence": match.matched,
        "method": match.method,
        "containment": match.containment,
        "tokens": tokens,
    }


def _without(reader: ShardReader, removals: list[Removal]) -> Tokens:
    gone = [removal["source_sequence"] for removal in removals]
    return reader.gather(np.setdiff1d(np.arange(len(reader)), gone))


def _write_removed(path: Path, removed: list[Removal], vocabulary: str) -> None:
    if removed:
        tokenizer = load_tokenizer(vocabulary)
        removed = [
            {**removal, "text": decode_text(tokenizer, removal["tokens"])} for removal in removed
        ]
    pq.write_table(pa.Table.from_pylist(removed, schema=REMOVED_SCHEMA), path, compression="zstd")


def overlap_report(
    params: DecontaminateParams, before: dict[str, int], removed: Iterable[Removal]
) -> dict[str, Any]:
    """Count what the published system counted, a split and a method at a time.

    Args:
        params: The section `decontaminate`.
        before: Sequences a split before anything was removed.
        removed: The sequences removed.

    Returns:
        For every split `before`, `removed`, `after`, `removed_percent`, and in
        `shared_with` the sequences by the split they match best and the method.
    """
    counts = Counter((item["split"], item["matched_split"], item["method"]) for item in removed)
    report: dict[str, Any] = {
        "window_tokens": params.window_tokens,
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
        workspace.report("decontaminate") / REPORT_NAME,
    )


if __name__ == "__main__":
    run_stage(main)
