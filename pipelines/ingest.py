"""Source to raw parquet: `python -m pipelines.ingest`.

Writes `part-00000.parquet`, ... (`id`, `url`, `title`, `text`) and a manifest. A killed
stage resumes after its last complete file.

DVC notices a changed byte in `sources/`. For a file elsewhere it knows only the name: after a
change there, run `dvc repro --force ingest`.
"""

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.base.artifacts import (
    publish_directory,
    read_json,
    remove_directory,
    write_json,
    write_manifest,
)
from pipelines.base.errors import UserError
from pipelines.base.resumable_parts import link_or_copy, part_directory, resumable
from pipelines.base.run_stage import progress, run_stage
from pipelines.base.workspace import Workspace
from pipelines.data.sources.files import Source, find_source
from pipelines.data.sources.folders import QUARANTINE
from pipelines.data.sources.reading import BadFileError, SourceFile, State
from pipelines.data.text.arrays import hash_keys
from pipelines.data.text.documents import ENCODING, RAW_SCHEMA
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
        UserError: If the source cannot be read, is empty, or repeats an id, if rows are lost on
            the way, or if an unfinished run has another number of documents per file.
    """
    source = find_source(params.source)
    settings = params.model_dump(exclude={"documents_per_file"})
    with (
        resumable(
            output,
            work,
            stage="ingest",
            fingerprint=settings,
            cut={"documents per file": params.documents_per_file},
        ) as unfinished,
        publish_directory(output) as building,
    ):
        parts, documents = _write_parts(params, source, unfinished)
        if not parts:
            raise _no_documents(params, documents)
        for part in parts:
            written = part_directory(unfinished, "part", part["number"])
            link_or_copy(written / DOCUMENTS_NAME, building / part["path"])
        paths = [building / part["path"] for part in parts]
        _check_totals(documents, paths, unfinished)
        _check_ids(paths)
        facts = {
            "source": params.source,
            **documents.facts(),
            "ignored": source.ignored,
            "characters": sum(part["characters"] for part in parts),
            "parts": [
                {name: part[name] for name in ("path", "rows", "characters")} for part in parts
            ],
        }
        write_manifest(building, stage="ingest", facts=facts)
    for file in documents.bad_files():
        _move_to_quarantine(file)
    log.info("%d documents, %d characters in %s", facts["rows"], facts["characters"], output)


class _Documents:
    """The documents of a source, read in pieces, and the files that they came from.

    Args:
        params: The section `ingest`.
        source: The files.
        done: The entries of the files that earlier runs have opened, in order.
    """

    def __init__(self, params: IngestParams, source: Source, done: list[Row]) -> None:
        files = iter(source)
        # Of each file that was opened: its name and hash, the rows that were taken from it, and
        # the problem of a bad one.
        self.files = [(file, dict(entry)) for entry, file in zip(done, files, strict=False)]
        self.rows_read = sum(entry["rows"] for entry in done)
        # What each file was when it was hashed.
        self._states: dict[str, State] = {}
        self._params = params
        self._tables = self._read(files)
        self._waiting: list[tuple[Row, pa.Table]] = []

    def take(self, rows: int) -> Iterator[pa.Table]:
        """Yield the next rows, at most `rows`, as tables of `ROWS_PER_GROUP`."""
        while rows and not self.is_empty():
            pieces: list[pa.Table] = []
            wanted = min(rows, ROWS_PER_GROUP)
            while wanted and not self.is_empty():
                entry, table = self._waiting.pop()
                pieces.append(table.slice(0, wanted))
                entry["rows"] += pieces[-1].num_rows
                wanted -= pieces[-1].num_rows
                rows -= pieces[-1].num_rows
                if pieces[-1].num_rows < table.num_rows:
                    self._waiting.append((entry, table.slice(pieces[-1].num_rows)))
            # The writer ends its pages by the pieces, which are others in a resumed run.
            yield pa.concat_tables(pieces).combine_chunks()

    def is_empty(self) -> bool:
        """Whether nothing is left; reads the next table to find out."""
        if not self._waiting:
            self._waiting = list(islice(self._tables, 1))
        return not self._waiting

    def facts(self) -> Row:
        """The files and the number of rows, for the manifest."""
        entries = [entry for _, entry in self.files]
        good = [_without(entry, "problem") for entry in entries if not entry["problem"]]
        bad = [_without(entry, "rows") for entry in entries if entry["problem"]]
        return {
            "sources": good,
            "quarantined": bad,
            "rows": sum(entry["rows"] for entry in good),
            "rows_read": self.rows_read,
            "rows_over_max_documents": sum(table.num_rows for _, table in self._waiting),
        }

    def bad_files(self) -> list[SourceFile]:
        """The files that could not be read."""
        return [file for file, entry in self.files if entry["problem"]]

    def _read(self, files: Iterable[SourceFile]) -> Iterator[tuple[Row, pa.Table]]:
        # Of the files that earlier runs have opened, only the last one can have rows left.
        for file, entry in chain(self.files[-1:], self._opened(files)):
            if entry["problem"]:
                continue
            for table in file.read(entry["rows"], self._states.get(entry["name"])):
                self.rows_read += table.num_rows
                yield entry, table

    def _opened(self, files: Iterable[SourceFile]) -> Iterator[tuple[SourceFile, Row]]:
        for file in files:
            entry: Row = {"name": file.name, "sha256": None, "rows": 0, "problem": ""}
            try:
                entry["sha256"], self._states[file.name] = file.sha256()
                if self._params.on_bad_file == "quarantine":
                    # Whole, before any of it is taken, as no part of a bad one is used.
                    deque(file.read(), maxlen=0)
            except BadFileError as error:
                if self._params.on_bad_file == "error":
                    raise
                entry["problem"] = error.detail
            self.files.append((file, entry))
            if entry["problem"]:
                log.warning("quarantined %s: %s", file.name, entry["problem"])
                self._check_budget()
            yield self.files[-1]

    def _check_budget(self) -> None:
        bad = [entry for _, entry in self.files if entry["problem"]]
        if len(bad) > self._params.max_bad_files:
            names = ", ".join(entry["name"] for entry in bad)
            raise UserError(
                f"expected at most {self._params.max_bad_files} bad files "
                f"(ingest.max_bad_files), got {len(bad)}: {names}; "
                f"the last one: {bad[-1]['problem']}",
                "repair the files, or raise ingest.max_bad_files in params.yaml",
            )


def _without(entry: Row, key: str) -> Row:
    return {name: value for name, value in entry.items() if name != key}


def _move_to_quarantine(file: SourceFile) -> None:
    """Move a local file into `quarantine/` beside it; a file in a cache stays."""
    if not file.is_local:
        return
    folder = file.path.parent / QUARANTINE
    names = chain([file.path.name], (f"{number}-{file.path.name}" for number in count(2)))
    try:
        folder.mkdir(exist_ok=True)
        target = next(path for name in names if not os.path.lexists(path := folder / name))
        if file.path.is_symlink():
            # What a relative link points to is counted from where the link is.
            target.symlink_to(file.path.parent.resolve() / file.path.readlink())
            file.path.unlink()
        else:
            file.path.rename(target)
    except OSError as error:
        raise UserError(
            f"{file.name}: expected to move this bad file into {folder}, got: {error.strerror}",
            "move or repair it yourself, and run the command again",
        ) from error


def _write_parts(params: IngestParams, source: Source, work: Path) -> tuple[list[Row], _Documents]:
    """Write files of `documents_per_file` rows, after those that an earlier run finished.

    Returns:
        The facts of each, and what was taken from the files of the source.
    """
    parts = _finished_parts(work)
    if parts and not _is_unchanged(source, parts[-1]["files"]):
        log.warning("the source has changed since the unfinished run: starting over")
        # The last one first: whenever this is killed, what is left is of one source.
        for part in reversed(parts):
            remove_directory(part_directory(work, "part", part["number"]))
        parts = []
    documents = _Documents(params, source, parts[-1]["files"] if parts else [])
    remaining = params.max_documents
    if remaining is not None:
        remaining -= sum(part["rows"] for part in parts)
    try:
        for _ in progress(count(), total=None, unit="file", label="ingest"):
            size = params.documents_per_file
            if remaining is not None:
                size = min(size, remaining)
            if size == 0 or documents.is_empty():
                break
            parts.append(_write_part(documents, size, work, len(parts)))
            if remaining is not None:
                remaining -= parts[-1]["rows"]
    except BadFileError as error:
        fix = f"{error.fix}; or set ingest.on_bad_file: quarantine"
        raise UserError(error.problem, fix) from error
    return parts, documents


def _finished_parts(work: Path) -> list[Row]:
    parts: list[Row] = []
    while (facts := part_directory(work, "part", len(parts)) / FACTS_NAME).is_file():
        parts.append(read_json(facts))
    return parts


def _is_unchanged(source: Source, done: list[Row]) -> bool:
    """Whether the files that an unfinished run has opened are the first, with the same bytes."""
    before = [(entry["name"], entry["sha256"]) for entry in done]
    return before == [(file.name, _digest(file)) for file in islice(source, len(done))]


def _digest(file: SourceFile) -> str | None:
    try:
        return file.sha256()[0]
    except BadFileError:
        return None


def _write_part(documents: _Documents, size: int, work: Path, number: int) -> Row:
    rows = characters = 0
    with publish_directory(part_directory(work, "part", number)) as building:
        path = building / DOCUMENTS_NAME
        with pq.ParquetWriter(path, RAW_SCHEMA, compression="zstd", **ENCODING) as writer:
            for table in documents.take(size):
                writer.write_table(table)
                rows += table.num_rows
                characters += pc.sum(pc.utf8_length(table["text"])).as_py()
        facts = {
            "number": number,
            "path": f"part-{number:05d}.parquet",
            "rows": rows,
            "characters": characters,
            "files": [entry for _, entry in documents.files],
        }
        write_json(building / FACTS_NAME, facts)
    return facts


def _no_documents(params: IngestParams, documents: _Documents) -> UserError:
    problems = [
        f"{entry['name']}: {entry['problem']}" for _, entry in documents.files if entry["problem"]
    ]
    return UserError(
        "; ".join(
            [f"ingest.source: expected documents, got no row from {params.source!r}", *problems]
        ),
        "repair the files" if problems else "name a source that is not empty",
    )


def _check_totals(documents: _Documents, paths: list[Path], work: Path) -> None:
    """Refuse to publish if rows were lost: those in the parts are counted by their footers."""
    facts = documents.facts()
    written = sum(pq.read_metadata(path).num_rows for path in paths)
    over = facts["rows_over_max_documents"]
    if written != facts["rows"] or facts["rows_read"] != written + over:
        raise UserError(
            f"expected every row that was read to be in a part, got {facts['rows_read']} read, "
            f"{facts['rows']} taken, {written} in the parts, {over} over ingest.max_documents",
            f"discard the unfinished run and start again: rm -r {work}",
        )


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
