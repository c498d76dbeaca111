"""JSON lines and XML dumps are read; damaged files are refused or, on request, put aside."""

import bz2
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.base.artifacts import read_manifest
from pipelines.base.errors import UserError
from pipelines.data.sources.files import source_files
from pipelines.ingest import ingest

PAGE = """  <page><title>{title}</title><ns>{ns}</ns><id>{id}</id>{redirect}
    <revision><id>{id}1</id><timestamp>2023-11-01T00:00:00Z</timestamp>
      <contributor><username>x</username><id>5</id></contributor>
      <model>wikitext</model><format>text/x-wiki</format>
      <text xml:space="preserve">{text}</text></revision></page>
"""
HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="zh">
  <siteinfo><sitename>Wikipedia</sitename><dbname>zhwiki</dbname>
    <base>https://zh.wikipedia.org/wiki/Wikipedia:%E9%A6%96%E9%A1%B5</base>
    <generator>MediaWiki</generator><case>first-letter</case>
    <namespaces><namespace key="0" case="first-letter" />
      <namespace key="10" case="first-letter">Template</namespace></namespaces></siteinfo>
"""
WIKITEXT = (
    "{{Infobox person|name=曹操}}\n"
    "'''曹操'''（155年－220年），字[[字|孟德]]。&lt;ref&gt;《三国志》&lt;/ref&gt;\n\n"
    "[[File:Cao.jpg|thumb|[[曹操]]像]]\n"
    "{| class=\"wikitable\"\n|-\n| 甲 || 乙\n|}\n"
    "== 生平 ==\n&lt;!-- 注 --&gt;曹操起兵&lt;br/&gt;於[[陳留]]。\n\n[[Category:三国]]"
)  # fmt: skip


def write_dump(path: Path, pages: int = 3) -> Path:
    def page(number: int, **values: object) -> str:
        values = {"ns": 0, "redirect": "", "text": WIKITEXT, **values}
        return PAGE.format(title=f"曹 {number}", id=number, **values)

    body = "".join(page(number) for number in range(1, pages + 1))
    body += page(90, redirect='<redirect title="曹操" />', text="#重定向 [[曹操]]")
    body += page(91, text="#REDIRECT [[曹操]]") + page(92, ns=10)
    path.write_bytes(bz2.compress(f"{HEAD}{body}</mediawiki>\n".encode()))
    return path


def read(source: Path) -> list[dict[str, str]]:
    (file,) = source_files(str(source))
    return pa.concat_tables(file.read(file.path)).to_pylist()


def test_a_dump_becomes_plain_articles(tmp_path: Path) -> None:
    rows = read(write_dump(tmp_path / "zhwiki-pages-articles.xml.bz2"))
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["title"] == "曹 1"
    assert rows[0]["url"] == "https://zh.wikipedia.org/wiki/曹_1"
    text = rows[0]["text"]
    for word in ("曹操（155年－220年），字孟德。", "生平", "曹操起兵", "於陳留。"):
        assert word in text
    for mark in ("{", "[", "|", "<", "'''", "==", "Infobox", "thumb", "甲", "三国", "注"):
        assert mark not in text


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz", ".jsonl.bz2"])
def test_json_lines_are_read(tmp_path: Path, end: str) -> None:
    lines = '{"id": "a", "text": "曹操", "extra": 1}\n\n{"id": "b", "text": "", "title": "劉"}\n'
    pack = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.bz2": bz2.compress}[end]
    path = tmp_path / f"corpus{end}"
    path.write_bytes(pack(lines.encode()))
    assert read(path) == [
        {"id": "a", "url": "", "title": "", "text": "曹操"},
        {"id": "b", "url": "", "title": "劉", "text": ""},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: expected a JSON object"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ('{"id": "a"}', "line 2: text: expected a string, got nothing"),
        ('{"id": 1, "text": "x"}', "line 2: id: expected a string, got int"),
        ('{"id": "", "text": "x"}', "line 2: id: expected a string"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(f'{{"id": "a", "text": "x"}}\n{line}\n')
    with pytest.raises(UserError, match=message):
        read(path)


def test_damaged_dumps_are_refused(tmp_path: Path) -> None:
    path = write_dump(tmp_path / "a.xml.bz2", pages=50)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"BZh9 no", bz2.compress(b"<mediawiki><page>")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.xml\.bz2: expected a whole XML dump"):
            read(path)


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n")
    with pytest.raises(UserError, match=r"got a\.csv"):
        read(tmp_path / "a.csv")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A directory of four files, two of them bad."""
    directory = tmp_path / "source"
    directory.mkdir()
    rows = {name: [f"{name}-{i}" for i in range(100)] for name in ("id", "url", "title", "text")}
    pq.write_table(pa.table(rows), directory / "a.parquet")
    content = (directory / "a.parquet").read_bytes()
    (directory / "b.parquet").write_bytes(content[:-100])
    # Good lines before a bad one: no part of the file is taken.
    line = json.dumps({"id": "c", "text": "x"})
    (directory / "c.jsonl").write_text(f"{line}\n{{\n")
    write_dump(directory / "d.xml.bz2")
    return directory


def test_a_bad_file_is_an_error_by_default(mixed: Path, profile, tmp_path: Path) -> None:
    params = profile.ingest.model_copy(update={"source": str(mixed)})
    with pytest.raises(UserError, match=r"b\.parquet: expected a whole parquet file"):
        ingest(params, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    assert (mixed / "b.parquet").is_file()


def test_bad_files_are_moved_named_and_counted(mixed: Path, profile, tmp_path: Path) -> None:
    update = {"source": str(mixed), "on_bad_file": "quarantine", "max_bad_files": 2}
    ingest(profile.ingest.model_copy(update=update), tmp_path / "raw")
    manifest = read_manifest(tmp_path / "raw")
    assert manifest["rows"] == 103
    assert [entry["name"] for entry in manifest["sources"]] == ["a.parquet", "d.xml.bz2"]
    assert [entry["name"] for entry in manifest["quarantined"]] == ["b.parquet", "c.jsonl"]
    assert "line 2" in manifest["quarantined"][1]["problem"]
    assert str(tmp_path) not in json.dumps(manifest["quarantined"])
    assert sorted(path.name for path in (mixed / "quarantine").iterdir()) == [
        "b.parquet",
        "c.jsonl",
    ]
    assert not (mixed / "b.parquet").exists()


def test_the_budget_of_bad_files_is_kept(mixed: Path, profile, tmp_path: Path) -> None:
    update = {"source": str(mixed), "on_bad_file": "quarantine", "max_bad_files": 1}
    with pytest.raises(UserError, match="expected at most 1 bad files") as caught:
        ingest(profile.ingest.model_copy(update=update), tmp_path / "raw")
    assert "b.parquet, c.jsonl" in caught.value.problem
    assert not (tmp_path / "raw").exists()
    assert (mixed / "b.parquet").is_file()
