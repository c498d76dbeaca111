"""Raw parquet to clean documents, split by document: `python -m pipelines.clean`.

Writes `train.parquet`, `validation.parquet`, `test.parquet` (`id`, `url`, `title`,
`text`, `cluster`), `dropped.parquet` (`id`, `title`, `reason`, `text`), `removed.parquet`
(`id`, `rule`, `text`: samples of what was cut out of texts) and a manifest.

Near duplicates, and documents of one title (passages of one article), form a
cluster. A cluster is kept, but never straddles splits.

Parts of the corpus are cleaned one by one (`pipelines/data/cleaning/part.py`) in `workers`
processes, compared by small keys (`corpus_index.py`) and copied to their split: memory does
not grow with the text.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.base.artifacts import publish_directory, read_json, read_manifest, write_manifest
from pipelines.base.errors import UserError
from pipelines.base.part_workers import map_parts
from pipelines.base.resumable_parts import resumable
from pipelines.base.run_stage import progress, run_stage
from pipelines.base.workspace import SPLITS, Workspace
from pipelines.data.cleaning.corpus_index import CorpusIndex
from pipelines.data.cleaning.leftovers import KEPT_PIECES, LEFTOVERS
from pipelines.data.cleaning.part import (
    DROPPED_SCHEMA,
    KEPT_SCHEMA,
    REMOVED_SCHEMA,
    Part,
    clean_part,
    read_arrow,
)
from pipelines.data.text.documents import RAW_SCHEMA
from pipelines.data.text.normalisation import NORMALISATION
from pipelines.params import CleanParams, SplitParams, load_params

log = logging.getLogger(__name__)

DOCUMENT_SCHEMA = RAW_SCHEMA.append(pa.field("cluster", pa.string()))
DROPPED = len(SPLITS)
ROWS_PER_GROUP = 4096


def clean(
    params: CleanParams, raw: Path, output: Path, *, work: Path | None = None, workers: int = 1
) -> None:
    """Normalise, drop, cluster and split the documents of a raw corpus.

    Args:
        params: The section `clean`.
        raw: The output of `ingest`.
        output: The directory to publish.
        work: Where finished parts are kept if the stage is killed; by default beside `output`.
        workers: Processes; the output does not depend on it.

    Raises:
        UserError: If a split would be empty, or an unfinished run has another number of parts.
    """
    files = sorted(raw.glob("part-*.parquet"))
    fingerprint = {
        "raw": read_manifest(raw)["root"],
        "params": params.model_dump(),
        "rules": [NORMALISATION, LEFTOVERS],
    }
    with (
        resumable(
            output, work, stage="clean", fingerprint=fingerprint, parts=len(files)
        ) as unfinished,
        publish_directory(output) as building,
    ):
        raw_parts = [Part(path, params) for path in files]
        parts = map_parts(clean_part, raw_parts, unfinished, label="clean", workers=workers)
        facts = _assemble(parts, params, building)
        write_manifest(building, stage="clean", facts=facts)
    log.info("documents %s, dropped %s", facts["documents"], facts["dropped"])


@dataclass(frozen=True)
class _Decisions:
    """The split and cluster of D documents, in narrow types, as there may be millions.

    Args:
        split_D: Index of the split in `SPLITS`, or `DROPPED`.
        names: Ids of the clusters.
        name_of_D: Index of the cluster in `names`.
        facts: What the manifest says about them.
    """

    split_D: npt.NDArray[np.uint8]
    names: pa.Array
    name_of_D: npt.NDArray[np.int32]
    facts: dict[str, Any]


def _assemble(parts: Sequence[Path], params: CleanParams, building: Path) -> dict[str, Any]:
    """Decide every document's split, write the files, and return the facts of the manifest."""
    near = params.near_duplicates
    index = CorpusIndex(parts, near.bands * near.rows_per_band)
    decisions = _decide(index, params)
    characters = _write_documents(parts, decisions, building)
    dropped, removed = _write_dropped(parts, index, building)
    return {
        "normalisation": NORMALISATION,
        "leftovers": LEFTOVERS if params.remove_wiki_leftovers else None,
        "script": params.script,
        "min_characters": params.min_characters,
        "split": params.split.model_dump(),
        **decisions.facts,
        "characters": characters,
        "dropped": dropped,
        "removed": removed,
    }


def _decide(index: CorpusIndex, params: CleanParams) -> _Decisions:
    kept = np.flatnonzero(~index.repeated_D)
    owners, near_pairs = index.clusters(kept, params)
    clusters, cluster_of = np.unique(owners, return_inverse=True)
    names = index.ids(clusters)
    split_of_cluster = _splits_of_clusters(names, params.split)
    split_of_kept = split_of_cluster[cluster_of]
    documents = np.bincount(split_of_kept, minlength=len(SPLITS))
    _check_splits(documents, len(clusters), params.split)
    split_D = np.full(len(index), DROPPED, np.uint8)
    split_D[kept] = split_of_kept
    name_of_D = np.zeros(len(index), np.int32)
    name_of_D[kept] = cluster_of
    facts = {
        "documents": _by_split(documents),
        "clusters": _by_split(np.bincount(split_of_cluster, minlength=len(SPLITS))),
        "near_duplicate_pairs": near_pairs,
        "clusters_of_several": int(np.count_nonzero(np.bincount(cluster_of) > 1)),
    }
    return _Decisions(split_D, names, name_of_D, facts)


def _by_split(counts: npt.NDArray[np.int64]) -> dict[str, int]:
    return dict(zip(SPLITS, counts.tolist(), strict=True))


def _splits_of_clusters(clusters: pa.Array, params: SplitParams) -> npt.NDArray[np.uint8]:
    """The split of every cluster, as its index in `SPLITS`."""
    split_of_cluster = np.empty(len(clusters), np.uint8)
    for start in range(0, len(clusters), ROWS_PER_GROUP):  # all names are large in Python
        names = clusters.slice(start, ROWS_PER_GROUP).to_pylist()
        split_of_cluster[start : start + len(names)] = [
            SPLITS.index(split_of(name, params)) for name in names
        ]
    return split_of_cluster


def split_of(cluster: str, params: SplitParams) -> str:
    """Choose the split of a cluster by a stable hash.

    The choice depends only on the seed and the cluster: a document keeps its split when the
    corpus grows.

    Args:
        cluster: The smallest document id of the cluster.
        params: Fractions and seed.

    Returns:
        `train`, `validation` or `test`.
    """
    digest = hashlib.sha256(f"{params.seed}:{cluster}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < params.test_fraction:
        return "test"
    if position < params.test_fraction + params.validation_fraction:
        return "validation"
    return "train"


def _check_splits(counts: npt.NDArray[np.int64], clusters: int, params: SplitParams) -> None:
    empty = [split for split, count in zip(SPLITS, counts.tolist(), strict=True) if count == 0]
    if empty:
        raise UserError(
            f"expected documents in every split, got none of {int(counts.sum())} in "
            f"{', '.join(empty)} ({clusters} clusters, validation_fraction "
            f"{params.validation_fraction}, test_fraction {params.test_fraction})",
            "use more documents, raise the fraction, or change split.seed in params.yaml "
            "(documents with the same title or nearly the same text stay together)",
        )


def _write_documents(
    parts: Sequence[Path], decisions: _Decisions, directory: Path
) -> dict[str, int]:
    """Copy every document to its split; return the characters of each split."""
    characters = dict.fromkeys(SPLITS, 0)
    writers = [
        pq.ParquetWriter(directory / f"{name}.parquet", DOCUMENT_SCHEMA, compression="zstd")
        for name in SPLITS
    ]
    start = 0
    waiting: list[list[pa.Table]] = [[] for _ in SPLITS]
    for part in progress(parts, total=len(parts), unit="part", label="split"):
        for batch in read_arrow(part / "kept.arrow", RAW_SCHEMA.names):
            mine = slice(start, start + batch.num_rows)
            here = decisions.split_D[mine]
            clusters = decisions.names.take(pa.array(decisions.name_of_D[mine]))
            table = pa.Table.from_batches([batch]).append_column("cluster", clusters)
            start = mine.stop
            for which, (name, tables) in enumerate(zip(SPLITS, waiting, strict=True)):
                chosen = table.filter(pa.array(here == which)).cast(DOCUMENT_SCHEMA)
                characters[name] += pc.sum(pc.utf8_length(chosen["text"])).as_py() or 0
                tables.append(chosen)
                if sum(map(len, tables)) >= ROWS_PER_GROUP:
                    writers[which].write_table(pa.concat_tables(tables))
                    tables.clear()
    for tables, writer in zip(waiting, writers, strict=True):
        writer.write_table(pa.concat_tables([DOCUMENT_SCHEMA.empty_table(), *tables]))
    for writer in writers:
        writer.close()
    return characters


def _write_dropped(
    parts: Sequence[Path], index: CorpusIndex, directory: Path
) -> tuple[dict[str, int], dict[str, int]]:
    """Keep what was dropped or cut out; return the counts by reason and by rule."""
    dropped: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    pieces = []
    schema = DROPPED_SCHEMA.remove(DROPPED_SCHEMA.get_field_index("row"))
    with pq.ParquetWriter(directory / "dropped.parquet", schema, compression="zstd") as writer:
        for number, part in enumerate(parts):
            start, stop = index.bounds(number)
            again = _repeats(part, index.repeated_D[start:stop])
            reasons = pa.array(["exact_duplicate"] * len(again), pa.string())
            again = again.append_column("reason", reasons).select(DROPPED_SCHEMA.names)
            unwanted = pa.Table.from_batches(read_arrow(part / "dropped.arrow"), DROPPED_SCHEMA)
            table = pa.concat_tables([again, unwanted]).sort_by("row").select(schema.names)
            writer.write_table(table)
            facts = read_json(part / "facts.json")
            dropped.update({**facts["dropped"], "exact_duplicate": len(again)})
            removed.update(facts["removed"])
            pieces.append(pq.read_table(part / "removed.parquet"))
    samples = pa.concat_tables(pieces).to_pandas()
    # The first of each rule, however the corpus is divided into parts.
    samples = samples.groupby("rule", sort=False).head(KEPT_PIECES)
    table = pa.Table.from_pandas(samples, REMOVED_SCHEMA, preserve_index=False)
    pq.write_table(table, directory / "removed.parquet", compression="zstd")
    return {reason: count for reason, count in dropped.items() if count}, dict(removed)


def _repeats(part: Path, repeated: npt.NDArray[np.bool_]) -> pa.Table:
    """The documents of a part that are copies of others."""
    found = [KEPT_SCHEMA.empty_table()]
    start = 0
    for batch in read_arrow(part / "kept.arrow") if repeated.any() else ():
        mine = pa.array(repeated[start : start + batch.num_rows])
        found.append(pa.Table.from_batches([batch]).filter(mine))
        start += batch.num_rows
    return pa.concat_tables(found)


def main() -> None:
    """Run the stage for the profile in use."""
    params = load_params()
    workspace = Workspace(params.name)
    clean(
        params.profile.clean,
        workspace.raw,
        workspace.documents,
        work=workspace.runs / f"{params.name}-clean",
        workers=params.profile.workers,
    )


if __name__ == "__main__":
    run_stage(main)
