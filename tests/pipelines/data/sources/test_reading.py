"""The boundary around a file: whatever it raises names the file, and says how to fix it."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.data.sources.files import find_source
from pipelines.data.sources.reading import BadFileError, Place, RefusedError, SourceFile
from pipelines.data.text.documents import RAW_SCHEMA


def file_that_raises(path: Path, error: BaseException) -> SourceFile:
    def reader(path: Path, skip: int, place: Place) -> Iterator[pa.Table]:
        yield RAW_SCHEMA.empty_table()
        place.row = "row 7"
        raise error

    path.touch()
    return SourceFile("below/a.bin", path, "file of numbers", reader)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RecursionError("too deep"), "row 7: expected a whole file of numbers, got .*too deep"),
        (MemoryError(), "row 7: expected a whole file of numbers, got .*MemoryError"),
        (KeyError("text"), "row 7: expected a whole file of numbers, got .*KeyError: 'text'"),
        (AssertionError(), "row 7: expected a whole file of numbers, got .*AssertionError"),
        (OSError("Truncated"), r"row 7: expected a whole .*\(OSError: Truncated\)"),
        (PermissionError(13, "Permission denied"), "row 7: .* opened, got: Permission denied"),
        (ValueError("x\ny" * 1000), "row 7: expected a whole file of numbers"),
        (RefusedError("expected 1, got 2", "write 1"), "row 7: expected 1, got 2"),
    ],
)
def test_whatever_a_reader_raises_names_the_file(
    tmp_path: Path, error: Exception, message: str
) -> None:
    path = tmp_path / "a.bin"
    with pytest.raises(BadFileError) as caught:
        list(file_that_raises(path, error).read())
    refused = pickle.loads(pickle.dumps(caught.value))
    assert refused.problem == f"{path}: {refused.detail}"
    assert len(refused.problem) < 600
    assert refused.fix
    with pytest.raises(BadFileError, match=message):
        raise caught.value


def test_the_detail_does_not_name_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    file = file_that_raises(path, ValueError(f"cannot parse {path}"))
    with pytest.raises(BadFileError) as caught:
        list(file.read())
    assert "cannot parse below/a.bin" in caught.value.detail
    assert str(tmp_path) not in caught.value.detail


def test_an_interruption_passes(tmp_path: Path) -> None:
    file = file_that_raises(tmp_path / "a.bin", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        list(file.read())


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    file = file_that_raises(tmp_path / "a.bin", ValueError())
    file.path.unlink()
    with pytest.raises(BadFileError, match="that can be opened, got: No such file"):
        file.sha256()


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = "".join(f'{{"id": "{n}", "text": "曹操"}}\n' for n in range(3000))
    path.write_text(lines, encoding="utf-8")
    (file,) = find_source(str(path))
    tables = file.read()
    next(tables)
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"id": "late", "text": "劉備"}\n')
    with pytest.raises(BadFileError, match="stays as it is while it is read") as caught:
        list(tables)
    assert "run the command again" in caught.value.fix
    # What the message says to do: once nothing writes to it, it is read whole.
    assert sum(table.num_rows for table in file.read()) == 3001
    _, state = file.sha256()
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(BadFileError, match="stays as it is"):
        list(file.read(state=state))
