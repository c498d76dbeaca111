"""Files of a path, folder or glob: all that can be read, once, and the rest by name."""

import logging
import os
from glob import escape
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.base.errors import UserError
from pipelines.data.sources.files import find_source
from pipelines.data.sources.reading import BadFileError

LINE = '{"id": "a", "text": "文"}\n'


def plant(root: Path, *names: str) -> None:
    """Files with one document each; a name that ends in / is a folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_text(LINE)


def found(source: Path | str) -> tuple[list[str], list[str]]:
    """The names of the files, and of what is not read."""
    here = find_source(str(source))
    return [file.name for file in here], list(here.ignored)


def test_a_path_a_folder_and_a_glob_name_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, "below/a.jsonl", "beside/")
    monkeypatch.chdir(tmp_path)
    for source, name in (
        (tmp_path / "below" / "a.jsonl", "a.jsonl"),
        (tmp_path / "below", "a.jsonl"),
        (f"{tmp_path}/*/a.jsonl", "below/a.jsonl"),
        (f"{tmp_path}/**/*.jsonl", "below/a.jsonl"),
        (f"{tmp_path}/bel*", "below/a.jsonl"),
        ("below/*.jsonl", "a.jsonl"),
        ("below", "a.jsonl"),
        (".", "below/a.jsonl"),
        ("beside/../below/a*.jsonl", "a.jsonl"),
    ):
        (file,) = find_source(str(source))
        assert file.path.resolve() == tmp_path / "below" / "a.jsonl"
        assert file.name == name


def test_every_format_is_read_below_a_folder_in_a_fixed_order(tmp_path: Path) -> None:
    names = [
        "B.JSONL",
        "a.jsonl",
        "deep/er/a.jsonl",
        "deep/er/b.ndjson.ZST",
        "deep/x.jsonl.gz",
        "wiki.parquet/part-00000-c000.snappy.parquet",
        "zhwiki-20240101-pages-articles.xml.bz2",
        "zhwiki-20240101-pages-articles1.xml-p1p187712",
        "zhwiki-20240101-pages-articles1.xml-p1p187712.bz2",
        "zhwiki.XML",
        "字/甲.PARQUET",
    ]
    plant(tmp_path, *reversed(names))
    assert found(tmp_path) == (sorted(names, key=lambda name: name.split("/")), [])
    assert found(f"{tmp_path}/**/*.jsonl")[0] == ["a.jsonl", "deep/er/a.jsonl"]


def test_what_is_not_read_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = [
        ".git/",
        ".hidden.jsonl",
        "README.md",
        "deep/_temporary/",
        "deep/quarantine/",
        "dump.xml.7z",
        "index.txt.bz2",
        "jsonl",
        "wiki.parquet/.part-0.parquet.crc",
        "wiki.parquet/_SUCCESS",
        "wiki.parquet/_metadata",
    ]
    inside = [f"{name}x.jsonl" if name.endswith("/") else name for name in others]
    plant(tmp_path, "deep/_a.jsonl", "wiki.parquet/part-0.parquet", *inside)
    with caplog.at_level(logging.WARNING):
        names, ignored = found(tmp_path)
    assert names == ["deep/_a.jsonl", "wiki.parquet/part-0.parquet"]
    assert ignored == sorted(others)
    assert all(name in caplog.text for name in others)
    # A glob that reaches below does not read what a folder would not.
    assert found(f"{tmp_path}/**/*.jsonl")[0] == ["deep/_a.jsonl"]
    # What is named itself is read.
    assert found(tmp_path / "deep" / "quarantine")[0] == ["x.jsonl"]
    assert found(f"{tmp_path}/deep/quarantine/*.jsonl")[0] == ["x.jsonl"]
    assert found(tmp_path / ".hidden.jsonl")[0] == [".hidden.jsonl"]


def test_many_ignored_names_are_cut_in_the_log_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plant(tmp_path, "a.jsonl", *(f"{number:02d}.csv" for number in range(30)))
    _, ignored = found(tmp_path)
    assert len(ignored) == 30
    assert "19.csv and 10 more" in caplog.text


def test_circles_of_links_end(tmp_path: Path) -> None:
    plant(tmp_path, "in/a/x.jsonl", "in/b/y.jsonl", "elsewhere/z.jsonl")
    (tmp_path / "in" / "a" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "a" / "beside").symlink_to(tmp_path / "in" / "b")
    (tmp_path / "in" / "b" / "beside").symlink_to(tmp_path / "in" / "a")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    names = ["a/beside/y.jsonl", "a/x.jsonl", "more/z.jsonl"]
    assert found(tmp_path / "in") == (names, ["a/beside/beside/", "a/up/", "b/"])


def test_links_that_lead_nowhere_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("nothing.jsonl")
    (tmp_path / "b.jsonl").symlink_to("b.jsonl")
    os.mkfifo(tmp_path / "c.jsonl")
    expected = {
        "a.jsonl": "expected a file, got a broken link to nothing.jsonl",
        "b.jsonl": "expected a file, got a broken link to b.jsonl",
        "c.jsonl": "expected a file, got a named pipe",
    }
    for file in find_source(str(tmp_path)):
        for read in (file.sha256, lambda file=file: list(file.read())):
            with pytest.raises(BadFileError) as caught:
                read()
            assert caught.value.detail == expected[file.name]
    # As the message says: the file where the link points.
    (tmp_path / "nothing.jsonl").write_text(LINE)
    (file,) = find_source(str(tmp_path / "a.jsonl"))
    assert pa.concat_tables(file.read())["id"].to_pylist() == ["a"]


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "字\udcd7\udcd6.jsonl"
    bad.write_text(LINE)
    (file,) = find_source(str(tmp_path))
    assert file.name == r"字\xd7\xd6.jsonl"
    with pytest.raises(BadFileError, match=r"expected a file name in UTF-8, got '字") as caught:
        list(file.read())
    str(caught.value).encode()
    # As the message says.
    assert caught.value.fix.startswith("rename the file")
    bad.rename(tmp_path / "字.jsonl")
    (file,) = find_source(str(tmp_path))
    assert len(list(file.read())) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a.csv", r"expected \.parquet, \.jsonl.*, got a\.csv"),
        ("dump.xml.7z", r"got dump\.xml\.7z"),
        ("*.csv", r"found none for .* \(not read: a\.csv\)"),
        ("nothing/*.jsonl", "found none for"),
        ("nothing.jsonl", "found none for"),
        ("empty", "found none for .*empty'"),
        ("**.jsonl", "expected a path or a glob"),
        ("a\0b", "found none|expected a path"),
        ("~nobody-of-this-name/*.jsonl", "found none for"),
    ],
)
def test_a_source_without_documents_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    plant(tmp_path, "a.csv", "dump.xml.7z", "empty/")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        find_source(source)
    assert caught.match(message)
    assert caught.value.fix


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "in/a.jsonl", "in/closed/b.jsonl")
    real = Path.iterdir

    def refuse(path: Path):
        # Tests may run as root, whom no permission stops.
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"folder that can be listed, got .*closed: Permission"):
        find_source(str(tmp_path / "in"))


def test_a_directory_with_magic_characters_is_no_pattern(tmp_path: Path) -> None:
    plant(tmp_path, "a?b [曹]*/one.jsonl", "axb [曹]y/two.jsonl", "a?b [曹]*/more/three.jsonl")
    start = escape(str(tmp_path / "a?b [曹]*"))
    assert [file.name for file in find_source(f"{start}/*.jsonl")] == ["one.jsonl"]
    assert len(list(find_source(f"{start}/**/*.jsonl"))) == 2
