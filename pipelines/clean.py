"""Raw parquet to clean documents, split by document: `python -m pipelines.clean`.

Writes `train.parquet`, `validation.parquet`, `test.parquet` (`id`, `url`, `title`,
`text`, `cluster`), `dropped.parquet` (`id`, `title`, `reason`, `twin`, `text`),
`removed.parquet` (`id`, `rule`, `text`: samples of what was cut out of texts),
`links.parquet` (`document`, `joined_to`, `evidence`, `strength`) and a manifest.

Texts are compared by their folded keys (`pipelines/data/text/folding.py`): of equal ones the
smallest id stays, and the others name it as their twin. Near duplicates, and documents of one
title with evidence from their content (passages of one article), form a cluster, and the links
say why. A cluster is kept, but never straddles splits.

Parts of the corpus are cleaned one by one (`pipelines/data/cleaning/part.py`) in `workers`
processes, compared by small keys (`corpus_index.py`) and copied to their split: memory does
not grow with the text.
"""

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
from pipelines.data.cleaning.clusters import Clusters, Indices
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
from pipelines.data.cleaning.splits import splits_of_clusters
from pipelines.data.text.documents import ENCODING, RAW_SCHEMA
from pipelines.data.text.folding import FOLDING
from pipelines.data.text.normalisation import NORMALISATION
from pipelines.params import CleanParams, SplitParams, load_params

log = logging.getLogger(__name__)

DOCUMENT_SCHEMA = RAW_SCHEMA.append(pa.field("cluster", pa.string()))
DROPPED = len(SPLITS)
# Of each split so much waits in memory until it is written, as one row group.
BYTES_PER_GROUP = 1 << 22
REPEATED_COLUMNS = ("id", "title", "text", "row")
LINK_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("document", "joined_to", "evidence")),
        # The Jaccard similarity, or the number of shingles in common; null for a title.
        ("strength", pa.float64()),
    ]
)
REMEDIES = {
    "short": "lower clean.min_characters",
    "long": "raise clean.max_characters",
    "not_chinese": "lower clean.min_han_share or raise clean.max_kana_share",
}


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
        UserError: If nothing is left, a split would be empty, or a document is neither kept nor
            dropped.
    """
    files = sorted(raw.glob("part-*.parquet"))
    fingerprint = {
        "raw": read_manifest(raw)["root"],
        "params": params.model_dump(),
        "rules": [NORMALISATION, LEFTOVERS, FOLDING],
    }
    with (
        resumable(output, work, stage="clean", fingerprint=fingerprint) as unfinished,
        publish_directory(output) as building,
    ):
        raw_parts = [Part(path, params) for path in files]
        parts = map_parts(clean_part, raw_parts, unfinished, label="clean", workers=workers)
        facts = _assemble(parts, params, building)
        _check_rows(read_manifest(raw)["rows"], facts)
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
    kept = np.flatnonzero(index.twin_D == np.arange(len(index)))
    dropped, removed = _write_dropped(parts, index, building)
    if len(kept) == 0:
        raise _nothing_left(dropped)
    clusters, counts = index.join(kept, params)
    joined = _write_links(kept, clusters, index, building)
    decisions = _decide(index, kept, index.owners(kept, clusters), params.split, dropped)
    # What is no longer needed grows with the number of documents, and the peak is still to come.
    del index, kept, clusters
    documents, characters = _write_documents(parts, decisions, building)
    return {
        "normalisation": NORMALISATION,
        "leftovers": LEFTOVERS if params.remove_wiki_leftovers else None,
        "folding": FOLDING,
        "script": params.script,
        "min_characters": params.min_characters,
        "split": params.split.model_dump(),
        "documents": documents,
        **decisions.facts,
        "near_duplicate_pairs": counts.joined,
        "same_title_pairs": joined - counts.joined,
        "characters": characters,
        "dropped": dropped,
        "removed": removed,
    }


def _nothing_left(dropped: dict[str, int]) -> UserError:
    """Say what was dropped and what to change."""
    reasons = [reason for reason in dropped if reason in REMEDIES]
    return UserError(
        f"expected documents to keep, got none: of {sum(dropped.values())}, "
        f"{_spelled(dropped)} were dropped",
        f"{'; '.join(REMEDIES[reason] for reason in reasons)} in params.yaml, or use another "
        "ingest.source",
    )


def _spelled(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _check_rows(rows: int, facts: dict[str, Any]) -> None:
    """Every document of the raw corpus must be kept or dropped."""
    kept, dropped = sum(facts["documents"].values()), sum(facts["dropped"].values())
    if kept + dropped != rows:
        raise UserError(
            f"expected each of {rows} raw documents to be kept or dropped, got {kept} kept and "
            f"{dropped} dropped",
            "make the raw corpus again with `dvc repro --force ingest`",
        )


def _decide(
    index: CorpusIndex,
    kept: Indices,
    owners: Indices,
    params: SplitParams,
    dropped: dict[str, int],
) -> _Decisions:
    clusters, cluster_of = np.unique(owners, return_inverse=True)
    names = index.ids(clusters)
    documents_K = np.bincount(cluster_of)
    characters_K = np.bincount(cluster_of, index.characters_D[kept]).astype(np.int64)
    split_K, too_large_K = splits_of_clusters(names, documents_K, characters_K, params)
    split_of_kept = split_K[cluster_of]
    if too_large_K.any():
        log.info(
            "%d clusters with %d documents are too large to be held out, and go to train",
            too_large_K.sum(),
            documents_K[too_large_K].sum(),
        )
    _check_splits(np.bincount(split_of_kept, minlength=len(SPLITS)), too_large_K, params, dropped)
    split_D = np.full(len(index), DROPPED, np.uint8)
    split_D[kept] = split_of_kept
    name_of_D = np.zeros(len(index), np.int32)
    name_of_D[kept] = cluster_of
    facts = {
        "clusters": _by_split(np.bincount(split_K, minlength=len(SPLITS))),
        "clusters_of_several": int(np.count_nonzero(documents_K > 1)),
        "clusters_too_large_to_hold_out": int(too_large_K.sum()),
    }
    return _Decisions(split_D, names, name_of_D, facts)


def _by_split(counts: npt.NDArray[np.int64]) -> dict[str, int]:
    return dict(zip(SPLITS, counts.tolist(), strict=True))


def _check_splits(
    counts: npt.NDArray[np.int64],
    too_large_K: npt.NDArray[np.bool_],
    params: SplitParams,
    dropped: dict[str, int],
) -> None:
    empty = [split for split, count in zip(SPLITS, counts.tolist(), strict=True) if count == 0]
    if empty:
        raise UserError(
            f"expected documents in every split, got none of {int(counts.sum())} in "
            f"{', '.join(empty)} ({len(too_large_K)} clusters, {int(too_large_K.sum())} of them "
            f"too large to hold out; validation_fraction {params.validation_fraction}, "
            f"test_fraction {params.test_fraction}; dropped: {_spelled(dropped) or 'none'})",
            "use more documents, raise the fraction, or change split.seed in params.yaml "
            "(passages of one article and documents with nearly the same text stay together)",
        )


def _write_documents(
    parts: Sequence[Path], decisions: _Decisions, directory: Path
) -> tuple[dict[str, int], dict[str, int]]:
    """Copy every document to its split; return the documents and characters of each split."""
    documents, characters = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    writers = [
        pq.ParquetWriter(
            directory / f"{name}.parquet", DOCUMENT_SCHEMA, compression="zstd", **ENCODING
        )
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
                documents[name] += len(chosen)
                characters[name] += pc.sum(pc.utf8_length(chosen["text"])).as_py() or 0
                tables.append(chosen)
                if sum(table.nbytes for table in tables) >= BYTES_PER_GROUP:
                    writers[which].write_table(pa.concat_tables(tables))
                    tables.clear()
                    # The allocator keeps what was freed, and more with every group.
                    pa.default_memory_pool().release_unused()
    for tables, writer in zip(waiting, writers, strict=True):
        writer.write_table(pa.concat_tables([DOCUMENT_SCHEMA.empty_table(), *tables]))
    for writer in writers:
        writer.close()
    return documents, characters


def _write_links(kept: Indices, clusters: Clusters, index: CorpusIndex, directory: Path) -> int:
    """Write which documents were joined and why; return their number."""
    number = 0
    with pq.ParquetWriter(directory / "links.parquet", LINK_SCHEMA, compression="zstd") as writer:
        for links in clusters.links:
            first, second = (index.ids(kept[documents]) for documents in links.pairs_L2.T)
            evidence = pa.array([links.evidence] * len(first), pa.string())
            strength = pa.array(links.strength_L, from_pandas=True)
            columns = [first, second, evidence, strength]
            writer.write_table(pa.table(columns, schema=LINK_SCHEMA))
            number += len(first)
    return number


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
            twins = index.twin_D[start:stop]
            repeated = twins != np.arange(start, stop)
            again = _repeats(part, repeated)
            reasons = pa.array(["exact_duplicate"] * len(again), pa.string())
            again = again.append_column("reason", reasons)
            again = again.append_column("twin", index.ids(twins[repeated]))
            again = again.select(DROPPED_SCHEMA.names)
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
    schema = pa.schema([KEPT_SCHEMA.field(name) for name in REPEATED_COLUMNS])
    found = [schema.empty_table()]
    start = 0
    for batch in read_arrow(part / "kept.arrow", REPEATED_COLUMNS) if repeated.any() else ():
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
