"""Source to raw parquet: `python -m pipelines.ingest`.

Writes `part-00000.parquet`, ... (`id`, `url`, `title`, `text`) and a manifest. DVC
knows the name of a local source, not its bytes: after you have changed the files
behind the same path, run `dvc repro --force ingest`.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.artifacts import publish_directory, sha256_file, write_manifest
from pipelines.errors import UserError
from pipelines.params import IngestParams, load_params
from pipelines.sources import SourceFile, source_files
from pipelines.stage import progress, run_stage
from pipelines.text_sources import RAW_SCHEMA
from pipelines.workspace import Workspace

log = logging.getLogger(__name__)


def ingest(params: IngestParams, output: Path) -> None:
    """Copy a source into raw parquet files.

    Args:
        params: The section `ingest`.
        output: The directory to publish.

    Raises:
        UserError: If the source cannot be read, is empty, or repeats an id.
    """
    sources: list[dict[str, Any]] = []
    bad: list[BadFile] = []
    with publish_directory(output) as building:
        tables = _limit(_read(params, sources, bad), params.max_documents)
        parts = _write_parts(tables, building, params.documents_per_file)
        rows = sum(part["rows"] for part in parts)
        if rows == 0:
            raise UserError(
                f"ingest.source: expected documents, {params.source!r} has no row",
                "name a source that is not empty",
            )
        _check_ids(building)
        facts = {
            "source": params.source,
            "sources": sources,
            "quarantined": [entry.facts() for entry in bad],
            "rows": rows,
            "characters": sum(part["characters"] for part in parts),
            "parts": parts,
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


def _read(
    params: IngestParams, seen: list[dict[str, Any]], bad: list[BadFile]
) -> Iterator[pa.Table]:
    """Yield the tables of a source; note which files they came from, and which were bad."""
    for file in source_files(params.source):
        digest = sha256_file(file.path)
        if params.on_bad_file == "quarantine":
            problem = _problem(file)
            if problem:
                log.warning("quarantined %s: %s", file.name, problem)
                bad.append(BadFile(file, digest, problem))
                _check_budget(params, bad)
                continue
        seen.append({"name": file.name, "sha256": digest})
        yield from file.read(file.path)


def _problem(file: SourceFile) -> str:
    """What is wrong with a file; it is read once for that, as no part of a bad one is taken."""
    try:
        for _ in file.read(file.path):
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
            f"came {len(bad)}: {names}; the last: {bad[-1].problem}",
            "mend the files, or raise the budget in params.yaml",
        )


def _limit(tables: Iterator[pa.Table], max_documents: int | None) -> Iterator[pa.Table]:
    remaining = max_documents
    for table in tables:
        if remaining is None:
            yield table
            continue
        yield table.slice(0, remaining)
        remaining -= min(remaining, table.num_rows)
        if remaining == 0:
            return


def _write_parts(
    tables: Iterator[pa.Table], directory: Path, documents_per_file: int
) -> list[dict[str, Any]]:
    """Write files of `documents_per_file` rows; the last one may be shorter."""
    parts: list[dict[str, Any]] = []
    waiting: list[pa.Table] = []
    num_waiting = 0

    def write(table: pa.Table) -> None:
        name = f"part-{len(parts):05d}.parquet"
        pq.write_table(table, directory / name, compression="zstd")
        characters = pc.sum(pc.utf8_length(table["text"])).as_py()
        parts.append({"path": name, "rows": table.num_rows, "characters": characters})

    for table in progress(tables, total=None, unit="batch", label="ingest"):
        waiting.append(table)
        num_waiting += table.num_rows
        while num_waiting >= documents_per_file:
            whole = pa.concat_tables(waiting)
            write(whole.slice(0, documents_per_file))
            waiting = [whole.slice(documents_per_file)]
            num_waiting -= documents_per_file
    if num_waiting:
        write(pa.concat_tables(waiting))
    return parts


def _check_ids(directory: Path) -> None:
    ids = pq.read_table(directory, columns=["id"], schema=RAW_SCHEMA)["id"]
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        example = repeated[0].as_py()
        raise UserError(
            f"expected every id once; {len(repeated)} ids occur several times, "
            f"{example['values']!r} {example['counts']} times",
            "give every document its own id (is a file matched twice by the source?)",
        )


def main() -> None:
    """Run the stage for the profile in use."""
    params = load_params()
    ingest(params.profile.ingest, Workspace(params.name).raw)


if __name__ == "__main__":
    run_stage(main)
