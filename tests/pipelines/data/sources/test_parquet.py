"""Parquet files of documents: what types are read, and what is refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.base.errors import UserError
from pipelines.data.sources.files import find_source
from pipelines.data.text.documents import RAW_SCHEMA

SMALL = {"id": ["1"], "url": ["u"], "title": ["t"], "text": ["文"]}


def read(path: Path) -> pa.Table:
    return pa.concat_tables([table for file in find_source(str(path)) for table in file.read()])


def strings_as(kind: pa.DataType) -> dict[str, pa.Array]:
    values = {"id": ["a", "b"], "url": [None, "u"], "title": ["曹操", None], "text": ["文", ""]}
    return {name: pa.array(column, pa.string()).cast(kind) for name, column in values.items()}


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
)
def test_every_type_of_strings_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"extra": [1, 2], **strings_as(kind)}), path)
    table = read(path)
    assert table.schema.equals(RAW_SCHEMA)
    assert table.to_pylist() == [
        {"id": "a", "url": "", "title": "曹操", "text": "文"},
        {"id": "b", "url": "u", "title": "", "text": ""},
    ]


@pytest.mark.parametrize("missing", [("url",), ("title",), ("url", "title")])
@pytest.mark.parametrize("nothing", [None, pa.nulls(1)])
def test_a_missing_url_or_title_is_empty(
    tmp_path: Path, missing: tuple[str, ...], nothing: pa.Array | None
) -> None:
    columns = {name: column for name, column in SMALL.items() if name not in missing}
    if nothing is not None:
        columns |= dict.fromkeys(missing, nothing)
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    expected = {name: "" if name in missing else column[0] for name, column in SMALL.items()}
    assert read(tmp_path / "a.parquet").to_pylist() == [expected]


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.int64(), pa.uint64(), pa.dictionary(pa.int8(), pa.int64())]
)
def test_integer_ids_are_written_in_digits(tmp_path: Path, kind: pa.DataType) -> None:
    ids = pa.array([7, 120]).cast(kind.value_type if pa.types.is_dictionary(kind) else kind)
    ids = ids.dictionary_encode() if pa.types.is_dictionary(kind) else ids
    pq.write_table(pa.table({"id": ids, "text": ["x", "y"]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")["id"].to_pylist() == ["7", "120"]


def test_a_parquet_file_cut_in_half_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.parquet"
    rows = {name: [f"{name}{i}" for i in range(5000)] for name in RAW_SCHEMA.names}
    pq.write_table(pa.table(rows), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"half\.parquet: expected a whole parquet file"):
        read(path)


def test_damage_behind_an_intact_footer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    rows = {name: [f"{name}{i}" for i in range(5000)] for name in RAW_SCHEMA.names}
    pq.write_table(pa.table(rows), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[200:2000] = bytes(1800)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.parquet: expected a whole parquet file"):
        read(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({k: v for k, v in SMALL.items() if k != "text"}, r"got id, url, title \(missing text"),
        ({"Text": ["x"]}, r"got Text \(missing id, text"),
        ({**SMALL, "id": [1.0]}, "column id: expected string or integer, got double"),
        ({**SMALL, "id": [True]}, "column id: expected string or integer, got bool"),
        ({**SMALL, "title": [1984]}, "column title: expected string, got int64"),
        ({**SMALL, "text": [b"x"]}, "column text: expected string, got binary"),
        ({**SMALL, "text": [["x"]]}, "column text: expected string, got list"),
        ({**SMALL, "id": pa.nulls(1)}, "row 0: column id: expected a string, got null"),
        ({**SMALL, "id": [""]}, "row 0: column id: expected a string, got an empty one"),
        ({**SMALL, "text": pa.array([None], pa.string())}, "row 0: column text: .*got null"),
    ],
)
def test_a_wrong_schema_is_refused(tmp_path: Path, columns: dict, message: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_repeated_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table([["a"], ["x"], ["y"]], names=["id", "text", "text"])
    pq.write_table(table, path)
    with pytest.raises(
        UserError, match=r"a\.parquet: column text: expected it once, got it 2 times"
    ):
        read(path)
    # As the message says: without the other column of that name.
    pq.write_table(table.remove_column(2), path)
    assert read(path)["text"].to_pylist() == ["x"]


def invalid(kind: pa.DataType, values: list[bytes]) -> pa.Array:
    """Strings that Arrow does not check: bytes under another name."""
    if pa.types.is_dictionary(kind):
        codes = pa.array(range(len(values)), kind.index_type)
        return pa.DictionaryArray.from_arrays(codes, invalid(kind.value_type, values))
    binary = pa.large_binary() if kind == pa.large_string() else pa.binary()
    return pa.array(values, binary).view(kind)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
@pytest.mark.parametrize("column", RAW_SCHEMA.names)
@pytest.mark.parametrize("bad", [b"\xff", b"\xed\xa0\xbd", b"\xe6\x96", "文".encode()[1:]])
def test_bytes_that_are_not_utf_8_are_refused(
    tmp_path: Path, kind: pa.DataType, column: str, bad: bytes
) -> None:
    path = tmp_path / "a.parquet"
    good = [f"文{number}".encode() for number in range(3000)]
    columns = {name: invalid(pa.string(), good) for name in RAW_SCHEMA.names}
    columns[column] = invalid(kind, [*good[:2500], bad, *good[2501:]])
    pq.write_table(pa.table(columns), path)
    message = rf"a\.parquet: row 2500: column {column}: expected text in UTF-8, got other bytes"
    with pytest.raises(UserError, match=message):
        read(path)
