"""Drop what an earlier split has of later ones: `python -m pipelines.decontaminate`.

Train loses what occurs in validation or test; validation loses what occurs in test, as it
chooses the checkpoint. Test is never changed: what it measures must not depend on the rest.
Text is compared by windows of its comparison key, document by document, so packing decides
nothing; `pipelines/data/overlap/verdicts.py` says which sequences go. They are kept in
`removed.parquet`.

Windows are looked up in parts by `workers` processes; finished parts are kept if the stage is
killed.
"""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.base.artifacts import publish_directory, read_manifest, write_json, write_manifest
from pipelines.base.part_workers import map_parts
from pipelines.base.resumable_parts import resumable
from pipelines.base.run_stage import progress, run_stage
from pipelines.base.workspace import SPLITS, Workspace
from pipelines.data.overlap.coverage import MIN_WINDOWS
from pipelines.data.overlap.hits import Join, Scan, close_index, join, open_index, scan
from pipelines.data.overlap.removals import REMOVED_SCHEMA, removal_tables
from pipelines.data.overlap.stream import stream_parts
from pipelines.data.overlap.verdicts import METHODS, Compared, decide
from pipelines.data.overlap.window_index import HeldOut, build_index
from pipelines.data.shards import (
    DOCUMENT_SCHEMA,
    SEQUENCE_SCHEMA,
    ShardReader,
    ShardWriter,
    count_train_ids,
    read_blocks,
)
from pipelines.data.text.shard_vocabulary import ShardVocabulary
from pipelines.params import DecontaminateParams, load_params

log = logging.getLogger(__name__)

# What each split must not share a sequence with.
LATER_SPLITS = {"validation": ("test",), "train": ("validation", "test")}
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
ROWS_PER_BATCH = 8192

Integers = npt.NDArray[np.int64]


def decontaminate(
    params: DecontaminateParams,
    tokens: Path,
    output: Path,
    report: Path,
    *,
    work: Path | None = None,
    workers: int = 1,
) -> None:
    """Copy the sequences without text of later splits.

    Args:
        params: The section `decontaminate`.
        tokens: The output of `tokenize`.
        output: The directory to publish; layout in `pipelines/data/shards.py`.
        report: The JSON file with the counts, before and after.
        work: Where finished parts are kept if the stage is killed; by default beside `output`.
        workers: Processes; the output does not depend on it.

    Raises:
        UserError: If shards are missing or broken.
    """
    manifest = read_manifest(tokens)
    facts = {name: manifest[name] for name in KEPT_FACTS}
    length = int(manifest["sequence_length"])
    readers = {split: ShardReader(tokens, split) for split in SPLITS}
    overlap: dict[str, Any] = params.model_dump()
    removed: dict[str, Integers] = {"test": np.empty(0, np.int64)}
    with (
        resumable(
            output,
            work,
            stage="decontaminate",
            fingerprint={"tokens": manifest["root"], "params": params.model_dump()},
        ) as unfinished,
        publish_directory(output) as building,
        pq.ParquetWriter(building / "removed.parquet", REMOVED_SCHEMA, compression="zstd") as table,
    ):
        _copy(readers["test"], removed["test"], removed["test"], building, facts)
        overlap["test"] = _counts(len(readers["test"]), Counter(), ())
        # Validation is compared with test first, and train with what is left of both.
        for split, later in LATER_SPLITS.items():
            gone = {name: removed[name] for name in later}
            held_out = HeldOut(tokens, gone, length, params.window_characters)
            compared = _compare(readers[split], held_out, params, unfinished, workers)
            removed[split], overlap[split] = _remove(compared, building, facts, table)
            # The next one is built, and one at a time is in memory.
            del compared
            close_index()
        sequences = {split: overlap[split]["after"] for split in SPLITS}
        table.close()
        counts_V = count_train_ids(building, length, int(facts["vocabulary_size"]))
        replace(ShardVocabulary.read(tokens), train_count_V=counts_V).write(building)
        write_manifest(building, stage="decontaminate", facts={**facts, "sequences": sequences})
    write_json(report, overlap)
    log.info("train: %(before)d sequences, %(removed)d removed, %(after)d left", overlap["train"])


def _remove(
    compared: Compared, directory: Path, facts: dict[str, Any], table: pq.ParquetWriter
) -> tuple[Integers, dict[str, Any]]:
    """Copy a split without what has to go; return that, and what the report says of it."""
    verdicts, covered = decide(compared)
    found = verdicts.found
    counts: Counter[tuple[str, str]] = Counter()
    for rows in removal_tables(compared, found):
        table.write_table(rows)
        matches = (rows[name].to_pylist() for name in ("matched_split", "method"))
        counts.update(zip(*matches, strict=True))
    titles = np.unique(found["document"][found["method"] == METHODS.index("title")])
    _copy(compared.reader, found["sequence"], titles, directory, facts)
    later = tuple(compared.held_out.removed)
    described = _counts(len(compared.reader), counts, later)
    return found["sequence"], {**described, "held_out": _held_out(compared, covered)}


def _compare(
    reader: ShardReader,
    held_out: HeldOut,
    params: DecontaminateParams,
    unfinished: Path,
    workers: int,
) -> Compared:
    """Find what a split has of later ones, in parts."""
    split = reader.split
    [index] = map_parts(build_index, [held_out], unfinished, label=f"index-{split}", workers=1)
    scans = map_parts(
        scan,
        [
            Scan(part, index, held_out.directory, held_out.window_characters)
            for part in stream_parts(reader.directory, split, reader.sequence_length)
        ],
        unfinished,
        label=f"scan-{split}",
        workers=workers,
    )
    windows = open_index(index)
    joins = map_parts(
        join,
        [Join(index, tuple(scans), block) for block in range(windows.num_blocks)],
        unfinished,
        label=f"join-{split}",
        workers=workers,
    )
    return Compared(
        reader, held_out, windows, scans, joins, params.excerpt_windows, params.max_containment
    )


def _copy(
    reader: ShardReader,
    removed: Integers,
    documents: Integers,
    directory: Path,
    facts: dict[str, Any],
) -> None:
    """Copy a split without some sequences, and its tables without them and some documents."""
    writer = ShardWriter(
        directory,
        reader.split,
        sequence_length=reader.sequence_length,
        sequences_per_shard=int(facts["sequences_per_shard"]),
    )
    start = 0
    for path in progress(reader.paths, total=None, unit="shard", label=f"copy {reader.split}"):
        for block_NL in read_blocks(path, reader.sequence_length):
            writer.append(block_NL[_kept(start, len(block_NL), removed)])
            start += len(block_NL)
    for kind, schema, dropped in (
        ("sequences", SEQUENCE_SCHEMA, removed),
        ("documents", DOCUMENT_SCHEMA, documents),
    ):
        name = f"{reader.split}.{kind}.parquet"
        start = 0
        with (
            pq.ParquetFile(reader.directory / name, pre_buffer=False) as source,
            pq.ParquetWriter(directory / name, schema, compression="zstd") as target,
        ):
            for batch in source.iter_batches(ROWS_PER_BATCH):
                kept = pa.array(_kept(start, batch.num_rows, dropped))
                target.write_table(pa.Table.from_batches([batch], schema).filter(kept))
                start += batch.num_rows


def _kept(start: int, count: int, removed: Integers) -> npt.NDArray[np.bool_]:
    """Tell which of `count` rows from `start` are left; `removed` is ascending."""
    first, last = np.searchsorted(removed, [start, start + count])
    kept = np.ones(count, np.bool_)
    kept[removed[first:last] - start] = False
    return kept


def _counts(
    before: int, counts: Counter[tuple[str, str]], later: tuple[str, ...]
) -> dict[str, Any]:
    """Count what a split lost, by the split that it matches best and by method."""
    gone = sum(counts.values())
    return {
        "before": before,
        "removed": gone,
        "after": before - gone,
        "removed_percent": round(100 * gone / max(before, 1), 4),
        "shared_with": {
            other: {method: counts[other, method] for method in METHODS} for other in later
        },
    }


def _held_out(compared: Compared, covered: list[Integers]) -> dict[str, Any]:
    """Describe the shares of held-out documents and sequences that the split has."""
    windows_U = np.concatenate([compared.index.documents, compared.index.sequences])
    is_document = np.arange(len(windows_U)) < len(compared.index.documents)
    described: dict[str, Any] = {}
    for name, is_mine in (("documents", is_document), ("sequences", ~is_document)):
        mine = np.flatnonzero(is_mine & (windows_U >= MIN_WINDOWS))
        shares = {"before": covered[0][mine], "after": covered[1][mine]}
        described[name] = {"judged": len(mine)}
        for when, covered_M in shares.items():
            share_M = covered_M / windows_U[mine]
            described[name][when] = {
                "mean": round(float(share_M.mean()), 6) if len(mine) else 0.0,
                "p99": round(float(np.quantile(share_M, 0.99)), 6) if len(mine) else 0.0,
                "max": round(float(share_M.max(initial=0.0)), 6),
                "above_bound": int(np.count_nonzero(share_M > compared.max_share)),
            }
    return described


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
