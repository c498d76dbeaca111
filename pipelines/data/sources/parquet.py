"""Read parquet files of documents in constant memory."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.data.sources.reading import Place, RefusedError
from pipelines.data.text.documents import RAW_SCHEMA

ROWS_PER_TABLE = 1024
OPTIONAL = ("url", "title")
STRINGS = (pa.string(), pa.large_string(), pa.string_view())


def read_parquet(path: Path, skip: int, place: Place) -> Iterator[pa.Table]:
    """Read a parquet file of documents in constant memory.

    Args:
        path: The file. Columns other than the four of `RAW_SCHEMA` are ignored; `url` and
            `title` may be missing. Any type of strings will do, dictionary-encoded too, and
            integers for ids.
        skip: Rows to skip at its start.
        place: Kept at the row.

    Yields:
        Tables of `RAW_SCHEMA`; a missing url or title is the empty string.

    Raises:
        RefusedError: If a column is missing, repeated or of another type, if a row has no id
            or text, or if text is not UTF-8.
    """
    # With `pre_buffer`, everything that was read stays in memory.
    with pq.ParquetFile(path, pre_buffer=False) as parquet:
        columns = _columns(parquet.schema_arrow)
        total = parquet.metadata.num_rows
        groups, row = _groups_after(parquet.metadata, skip)
        batches = parquet.iter_batches(ROWS_PER_TABLE, row_groups=groups, columns=columns)
        for batch in batches if groups else ():
            wanted = batch.slice(max(skip - row, 0))
            row += batch.num_rows
            if wanted.num_rows:
                yield _as_raw(wanted, row - wanted.num_rows, place)
            place.row = f"row {row}"
        if groups and row != total:
            raise RefusedError(
                f"expected {total} rows by the footer of the file, got {row}",
                "the file is damaged: download or write it again",
            )


def _groups_after(metadata: pq.FileMetaData, skip: int) -> tuple[list[int], int]:
    """The row groups with rows after the first `skip`, and the index of their first row."""
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    first_row = 0
    for group, size in enumerate(sizes):
        if first_row + size > skip:
            return list(range(group, len(sizes))), first_row
        first_row += size
    return [], first_row


def _columns(schema: pa.Schema) -> list[str]:
    """Check the columns of a file, and return the names of those to read."""
    names = [name for name in RAW_SCHEMA.names if name in schema.names]
    missing = [name for name in RAW_SCHEMA.names if name not in (*names, *OPTIONAL)]
    if missing:
        raise RefusedError(
            f"expected the columns id and text (url and title are optional), "
            f"got {', '.join(schema.names) or 'none'} (missing {', '.join(missing)})",
            "rename or add the columns (the schema is that of wikimedia/wikipedia)",
        )
    for name in names:
        indices = schema.get_all_field_indices(name)
        if len(indices) > 1:
            raise RefusedError(
                f"column {name}: expected it once, got it {len(indices)} times",
                "drop or rename the other columns of that name",
            )
        got = schema.field(indices[0]).type
        if not _is_accepted(name, got):
            expected = "string or integer" if name == "id" else "string"
            raise RefusedError(
                f"column {name}: expected {expected}, got {got}",
                "write the column as string (UTF-8)",
            )
    return names


def _is_accepted(name: str, kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_integer_id = name == "id" and pa.types.is_integer(kind)
    # A column of nothing but null has a type of its own; ids and texts are checked row by row.
    return kind in STRINGS or pa.types.is_null(kind) or is_integer_id


def _as_raw(batch: pa.RecordBatch, first_row: int, place: Place) -> pa.Table:
    columns = []
    for name in RAW_SCHEMA.names:
        if name in batch.schema.names:
            column = _checked(batch.column(name), name, first_row, place).cast(pa.string())
        else:
            column = pa.nulls(batch.num_rows, pa.string())
        columns.append(column.fill_null("") if name in OPTIONAL else column)
    ids, _, _, texts = columns
    for name, column in (("id", ids), ("text", texts)):
        if column.null_count:
            raise _absent(name, "null", pc.is_null(column), first_row, place)
    is_empty = pc.equal(ids, "")
    if pc.any(is_empty).as_py():
        raise _absent("id", "an empty one", is_empty, first_row, place)
    return pa.table(columns, schema=RAW_SCHEMA)


def _absent(name: str, got: str, rows: pa.Array, first_row: int, place: Place) -> RefusedError:
    place.row = f"row {first_row + pc.index(rows, value=True).as_py()}"
    return RefusedError(
        f"column {name}: expected a string, got {got}",
        "drop the rows without id or text from the file, and give every document an id",
    )


def _checked(column: pa.Array, name: str, first_row: int, place: Place) -> pa.Array:
    """Decode a dictionary, and refuse text that is not UTF-8: parquet does not check it."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary.take(column.indices)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for row in range(len(column)):
            try:
                column.slice(row, 1).validate(full=True)
            except pa.ArrowInvalid as error:
                place.row = f"row {first_row + row}"
                raise RefusedError(
                    f"column {name}: expected text in UTF-8, got other bytes",
                    "write the column as UTF-8, or drop the row",
                ) from error
        raise
    return column
