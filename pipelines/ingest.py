"""Source to raw parquet: `python -m pipelines.ingest`.

Writes `part-00000.parquet`, ... (`id`, `url`, `title`, `text`) and a manifest. A killed
stage goes on behind its last whole file. DVC
notices a changed byte in `sources/`. Of a file elsewhere it knows the name alone: after you
have changed it, run `dvc repro --force ingest`.
"""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.base.artifacts import (
    publish_directory,
    read_json,
    sha256_file,
    write_json,
    write_manifest,
)
from pipelines.base.errors import UserError
from pipelines.base.resumable_parts import place, shard_work
from pipelines.base.run_stage import progress, run_stage
from pipelines.base.workspace import Workspace
from pipelines.data.sources.files import SourceFile, source_files
from pipelines.data.text.arrays import hash_keys
from pipelines.data.text.documents import RAW_SCHEMA
from pipelines.params import IngestParams, load_params

log = logging.getLogger(__name__)

Row = dict[str, Any]

PART = "documents.parquet"
ROWS_A_GROUP = 2048


def ingest(params: IngestParams, output: Path, *, work: Path | None = None) -> None:
    """Copy a source into raw parquet files.

    Args:
        params: The section `ingest`.
        output: The directory to publish.
        work: Where finished files are kept if the stage is killed; by default beside `output`.

    Raises:
        UserError: If the source cannot be read, is empty, or repeats an id.
    """
    bad: list[BadFile] = []
    settings = params.model_dump(exclude={"documents_per_file"})
    with (
        shard_work(
            work or output.with_name(f".{output.name}-work"),
            stage="ingest",
            fingerprint=settings,
            shards=params.documents_per_file,
            workers=1,
            unit="documents a file",
        ) as shards,
        publish_directory(output) as building,
    ):
        parts, sources = _write_parts(params, shards.directory, bad)
        rows = sum(part["rows"] for part in parts)
        if rows == 0:
            raise UserError(
                f"ingest.source: expected documents, {params.source!r} has no row",
                "name a source that is not empty",
            )
        for part in parts:
            place(_part_directory(shards.directory, part["number"]) / PART, building / part["path"])
        _check_ids([building / part["path"] for part in parts])
        facts = {
            "source": params.source,
            "sources": [{"name": file["name"], "sha256": file["sha256"]} for file in sources],
            "quarantined": [entry.facts() for entry in bad],
            "rows": rows,
            "characters": sum(part["characters"] for part in parts),
            "parts": [
                {name: part[name] for name in ("path", "rows", "characters")} for part in parts
            ],
        }
        write_manifest(building, stage="ingest", facts=facts)
    for entry in bad:
        entry.move()
    log.info("%d documents, %d characters in %s", rows, facts["characters"], output)


@dataclass(frozen=True)
class BadFile:
    """A file that could not be read, and why."""

    file: SourceFile
    sha256: str
    problem: str

    def facts(self) -> dict[str, Any]:
        """How the manifest names it."""
        return {"name": self.file.name, "sha256": self.sha256, "problem": self.problem}

    def move(self) -> None:
        """Put a file of ours into `quarantine/` beside it; one of a cache stays."""
        if self.file.is_ours:
            shelf = self.file.path.parent / "quarantine"
            shelf.mkdir(exist_ok=True)
            self.file.path.rename(shelf / self.file.path.name)


class _Documents:
    """The documents of a source, taken some at a time, and from which files they came.

    Args:
        params: The section `ingest`.
        done: What was taken of the files before this run, in order.
        bad: Where files that cannot be read are noted.
    """

    def __init__(self, params: IngestParams, done: list[Row], bad: list[BadFile]) -> None:
        self.files: list[Row] = []
        self._tables = self._read(params, {file["name"]: file for file in done}, bad)
        self._waiting: list[tuple[Row, pa.Table]] = []

    def take(self, rows: int) -> Iterator[pa.Table]:
        """Yield so many rows, or all that are left, as tables of `ROWS_A_GROUP`."""
        while rows and not self.is_empty():
            pieces: list[pa.Table] = []
            wanted = min(rows, ROWS_A_GROUP)
            while wanted and not self.is_empty():
                file, table = self._waiting.pop()
                pieces.append(table.slice(0, wanted))
                file["rows"] += pieces[-1].num_rows
                wanted -= pieces[-1].num_rows
                rows -= pieces[-1].num_rows
                if pieces[-1].num_rows < table.num_rows:
                    self._waiting.append((file, table.slice(pieces[-1].num_rows)))
            yield pa.concat_tables(pieces)

    def is_empty(self) -> bool:
        """Whether nothing is left; reads on to know."""
        if not self._waiting:
            self._waiting = list(islice(self._tables, 1))
        return not self._waiting

    def _read(
        self, params: IngestParams, done: dict[str, Row], bad: list[BadFile]
    ) -> Iterator[tuple[Row, pa.Table]]:
        for file in source_files(params.source):
            before = done.get(file.name)
            digest = sha256_file(file.path)
            if before is None and params.on_bad_file == "quarantine":
                problem = _problem(file)
                if problem:
                    log.warning("quarantined %s: %s", file.name, problem)
                    bad.append(BadFile(file, digest, problem))
                    _check_budget(params, bad)
                    continue
            rows = 0 if before is None else before["rows"]
            self.files.append({"name": file.name, "sha256": digest, "rows": rows})
            for table in file.read(file.path, rows):
                yield self.files[-1], table


def _problem(file: SourceFile) -> str:
    """What is wrong with a file; it is read once for that, as no part of a bad one is taken."""
    try:
        for _ in file.read(file.path, 0):
            pass
    except UserError as error:
        # Without the place on this machine: the manifest goes elsewhere.
        return error.problem.replace(str(file.path), file.name)
    return ""


def _check_budget(params: IngestParams, bad: list[BadFile]) -> None:
    if len(bad) > params.max_bad_files:
        names = ", ".join(entry.file.name for entry in bad)
        raise UserError(
            f"expected at most {params.max_bad_files} bad files (ingest.max_bad_files), "
            f"got {len(bad)}: {names}; the last: {bad[-1].problem}",
            "mend the files, or raise the budget in params.yaml",
        )


def _write_parts(
    params: IngestParams, work: Path, bad: list[BadFile]
) -> tuple[list[Row], list[Row]]:
    """Write files of `documents_per_file` rows, after those that an earlier run finished.

    Returns:
        The facts of each, and what was taken of the files of the source.
    """
    parts: list[Row] = []
    while (facts := _part_directory(work, len(parts)) / "facts.json").is_file():
        parts.append(read_json(facts))
    if parts and not _is_unchanged(params, parts[-1]["files"]):
        log.warning("the source has changed since the unfinished run: begun afresh")
        for part in parts:
            shutil.rmtree(_part_directory(work, part["number"]))
        parts = []
    documents = _Documents(params, parts[-1]["files"] if parts else [], bad)
    remaining = params.max_documents
    if remaining is not None:
        remaining -= sum(part["rows"] for part in parts)
    for _ in progress(count(), total=None, unit="file", label="ingest"):
        size = params.documents_per_file
        if remaining is not None:
            size = min(size, remaining)
        if size == 0 or documents.is_empty():
            break
        parts.append(_write_part(documents, size, work, len(parts)))
        if remaining is not None:
            remaining -= parts[-1]["rows"]
    return parts, documents.files


def _is_unchanged(params: IngestParams, done: list[Row]) -> bool:
    """Whether the files that an unfinished run has read still have their bytes."""
    digests = {file["name"]: file["sha256"] for file in done}
    here = {}
    for file in source_files(params.source):
        if file.name in digests:
            here[file.name] = sha256_file(file.path)
        if len(here) == len(digests):
            break
    return here == digests


def _write_part(documents: _Documents, size: int, work: Path, number: int) -> Row:
    rows = characters = 0
    with publish_directory(_part_directory(work, number)) as building:
        with pq.ParquetWriter(building / PART, RAW_SCHEMA, compression="zstd") as writer:
            for table in documents.take(size):
                writer.write_table(table)
                rows += table.num_rows
                characters += pc.sum(pc.utf8_length(table["text"])).as_py()
        facts = {
            "number": number,
            "path": f"part-{number:05d}.parquet",
            "rows": rows,
            "characters": characters,
            "files": documents.files,
        }
        write_json(building / "facts.json", facts)
    return facts


def _part_directory(work: Path, number: int) -> Path:
    return work / f"part-{number:05d}"


def _check_ids(paths: list[Path]) -> None:
    """Refuse an id that occurs twice; of all ids only hashes are held."""
    keys = np.sort(np.concatenate([hash_keys(_ids(path)) for path in paths]))
    twice = keys[1:][keys[1:] == keys[:-1]]
    if not len(twice):
        return
    ids = [ids.filter(pa.array(np.isin(hash_keys(ids), twice))) for ids in map(_ids, paths)]
    counts = pc.value_counts(pa.concat_arrays(ids))
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        example = repeated[0].as_py()
        raise UserError(
            f"expected every id once; {len(repeated)} ids occur several times, "
            f"{example['values']!r} {example['counts']} times",
            "give every document its own id (is a file matched twice by the source?)",
        )


def _ids(path: Path) -> pa.Array:
    return pa.concat_arrays(pq.read_table(path, columns=["id"])["id"].chunks)


def main() -> None:
    """Run the stage for the profile in use."""
    params = load_params()
    workspace = Workspace(params.name)
    ingest(params.profile.ingest, workspace.raw, work=workspace.runs / f"{params.name}-ingest")


if __name__ == "__main__":
    run_stage(main)
