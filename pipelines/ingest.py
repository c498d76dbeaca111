"""Source to raw parquet: `python -m pipelines.ingest`.

Writes `part-00000.parquet`, ... (`id`, `url`, `title`, `text`) and a manifest. A killed
stage resumes after its last complete file.

DVC notices a changed byte in `sources/`. For a file elsewhere it knows only the name: after a
change there, run `dvc repro --force ingest`.
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
from pipelines.base.resumable_parts import link_or_copy, part_directory, resumable
from pipelines.base.run_stage import progress, run_stage
from pipelines.base.workspace import Workspace
from pipelines.data.sources.files import SourceFile, source_files
from pipelines.data.text.arrays import hash_keys
from pipelines.data.text.documents import RAW_SCHEMA
from pipelines.params import IngestParams, load_params

log = logging.getLogger(__name__)

Row = dict[str, Any]

DOCUMENTS_NAME = "documents.parquet"
FACTS_NAME = "facts.json"
ROWS_PER_GROUP = 2048


def ingest(params: IngestParams, output: Path, *, work: Path | None = None) -> None:
    """Copy a source into raw parquet files.

    Args:
        params: The section `ingest`.
        output: The directory to publish.
        work: Where finished parts are kept if the stage is killed; by default beside `output`.

    Raises:
        UserError: If the source cannot be read, is empty, or repeats an id, or an unfinished
            run has another number of documents per file.
    """
    bad: list[BadFile] = []
    settings = params.model_dump(exclude={"documents_per_file"})
    with (
        resumable(
            output,
            work,
            stage="ingest",
            fingerprint=settings,
            parts=params.documents_per_file,
            unit="documents per file",
        ) as unfinished,
        publish_directory(output) as building,
    ):
        parts, sources = _write_parts(params, unfinished, bad)
        rows = sum(part["rows"] for part in parts)
        if rows == 0:
            raise UserError(
                f"ingest.source: expected documents, got no row from {params.source!r}",
                "name a source that is not empty",
            )
        for part in parts:
            written = part_directory(unfinished, "part", part["number"])
            link_or_copy(written / DOCUMENTS_NAME, building / part["path"])
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
        """The entry in the manifest."""
        return {"name": self.file.name, "sha256": self.sha256, "problem": self.problem}

    def move(self) -> None:
        """Move a local file into `quarantine/` beside it; a file in a cache stays."""
        if self.file.is_local:
            quarantine = self.file.path.parent / "quarantine"
            quarantine.mkdir(exist_ok=True)
            self.file.path.rename(quarantine / self.file.path.name)


class _Documents:
    """The documents of a source, read in pieces, and the files that they came from.

    Args:
        params: The section `ingest`.
        done: What earlier runs took from the files, in order.
        bad: Files that cannot be read are added to it.
    """

    def __init__(self, params: IngestParams, done: list[Row], bad: list[BadFile]) -> None:
        self.files: list[Row] = []
        self._tables = self._read(params, {file["name"]: file for file in done}, bad)
        self._waiting: list[tuple[Row, pa.Table]] = []

    def take(self, rows: int) -> Iterator[pa.Table]:
        """Yield the next rows, at most `rows`, as tables of `ROWS_PER_GROUP`."""
        while rows and not self.is_empty():
            pieces: list[pa.Table] = []
            wanted = min(rows, ROWS_PER_GROUP)
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
        """Whether nothing is left; reads the next table to find out."""
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
    """Say what is wrong with a file; read it whole first, as no part of a bad one is used."""
    try:
        for _ in file.read(file.path, 0):
            pass
    except UserError as error:
        # Without this machine's path: the manifest leaves the machine.
        return error.problem.replace(str(file.path), file.name)
    return ""


def _check_budget(params: IngestParams, bad: list[BadFile]) -> None:
    if len(bad) > params.max_bad_files:
        names = ", ".join(entry.file.name for entry in bad)
        raise UserError(
            f"expected at most {params.max_bad_files} bad files (ingest.max_bad_files), "
            f"got {len(bad)}: {names}; the last one: {bad[-1].problem}",
            "repair the files, or raise ingest.max_bad_files in params.yaml",
        )


def _write_parts(
    params: IngestParams, work: Path, bad: list[BadFile]
) -> tuple[list[Row], list[Row]]:
    """Write files of `documents_per_file` rows, after those that an earlier run finished.

    Returns:
        The facts of each, and what was taken from the files of the source.
    """
    parts = _finished_parts(work)
    if parts and not _is_unchanged(params, parts[-1]["files"]):
        log.warning("the source has changed since the unfinished run: starting over")
        for part in parts:
            shutil.rmtree(part_directory(work, "part", part["number"]))
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


def _finished_parts(work: Path) -> list[Row]:
    parts: list[Row] = []
    while (facts := part_directory(work, "part", len(parts)) / FACTS_NAME).is_file():
        parts.append(read_json(facts))
    return parts


def _is_unchanged(params: IngestParams, done: list[Row]) -> bool:
    """Whether the files that an unfinished run has read still hold the same bytes."""
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
    with publish_directory(part_directory(work, "part", number)) as building:
        with pq.ParquetWriter(building / DOCUMENTS_NAME, RAW_SCHEMA, compression="zstd") as writer:
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
        write_json(building / FACTS_NAME, facts)
    return facts


def _check_ids(paths: list[Path]) -> None:
    """Refuse an id that occurs twice; only hashes of the ids are held in memory."""
    keys = np.sort(np.concatenate([hash_keys(_ids(path)) for path in paths]))
    repeated_keys = keys[1:][keys[1:] == keys[:-1]]
    if not len(repeated_keys):
        return
    ids = [ids.filter(pa.array(np.isin(hash_keys(ids), repeated_keys))) for ids in map(_ids, paths)]
    counts = pc.value_counts(pa.concat_arrays(ids))
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        example = repeated[0].as_py()
        raise UserError(
            f"expected every id once, got {example['values']!r} {example['counts']} times "
            f"({len(repeated)} repeated ids)",
            "give every document its own id (does ingest.source match a file twice?)",
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
