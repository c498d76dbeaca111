"""JSON lines and XML dumps are read; damaged files are refused or, on request, put aside."""

import bz2
import gc
import gzip
import json
import subprocess
from pathlib import Path
from xml.etree.ElementTree import Element

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.base.errors import UserError
from pipelines.data.sources import formats
from pipelines.data.sources.files import find_source
from tests.pipelines.data.sources.good_files import dump_xml, write_dump

PARSER_BYTES = 1 << 14


def read(source: Path) -> list[dict[str, str]]:
    (file,) = find_source(str(source))
    return pa.concat_tables(file.read()).to_pylist()


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


def test_a_dump_without_siteinfo_is_read(tmp_path: Path) -> None:
    whole = dump_xml()
    start, stop = whole.index("<siteinfo>"), whole.index("</siteinfo>") + len("</siteinfo>")
    texts = []
    for name, text in (("whole.xml", whole), ("part.xml", whole[:start] + whole[stop:])):
        (tmp_path / name).write_text(text, encoding="utf-8")
        texts.append(read(tmp_path / name))
    assert texts[1] == [{**row, "url": ""} for row in texts[0]]


PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


@pytest.mark.parametrize("end", [".jsonl", ".NDJSON"])
@pytest.mark.parametrize("packed", PACKERS)
def test_json_lines_are_read(tmp_path: Path, end: str, packed: str) -> None:
    first = '\ufeff{"id": "a", "text": "曹操", "extra": 1, "url": null, "title": null}\r\n\n'
    second = '{"id": -12, "text": "", "title": "劉\\ud83d\\ude00"}'
    path = tmp_path / f"corpus{end}{packed.upper()}"
    pack = PACKERS[packed]
    # Two streams in one file, as parallel compressors write them.
    path.write_bytes(pack(first.encode()) + pack(second.encode()))
    assert read(path) == [
        {"id": "a", "url": "", "title": "", "text": "曹操"},
        {"id": "-12", "url": "", "title": "劉😀", "text": ""},
    ]


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".zst"])
def test_no_stream_of_a_compressed_file_is_lost(tmp_path: Path, packed: str) -> None:
    line = b'{"id": "a", "text": "x"}\n'
    pack = PACKERS[packed]
    path = tmp_path / f"corpus.jsonl{packed}"
    for damaged in (b"", pack(line)[:-1], pack(line) + pack(line)[4:], pack(line) + b"<html>"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"corpus\.jsonl{packed}: .*expected"):
            read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: expected a JSON object"),
        ("[1]", "line 2: expected a JSON object, got an array"),
        ("[" * 100_000, "line 2: expected a JSON object, got something else .*recursion"),
        ("\0" * 100, "line 2: expected a JSON object"),
        ('{"id": "a"}', "line 2: text: expected a string, got nothing"),
        ('{"id": true, "text": "x"}', "line 2: id: expected a string, got a boolean"),
        ('{"id": 1.0, "text": "x"}', "line 2: id: expected a string, got a number"),
        ('{"id": null, "text": "x"}', "line 2: id: expected a string, got null"),
        (f'{{"id": {"9" * 5000}, "text": "x"}}', "line 2: expected a JSON object"),
        ('{"id": "", "text": "x"}', "line 2: id: expected a string, got an empty one"),
        ('{"id": "b", "text": null}', "line 2: text: expected a string, got null"),
        ('{"id": "b", "text": "x", "title": 19}', "line 2: title: expected a string, got a number"),
        ('{"id": "b", "text": "x", "text": "y"}', "line 2: text: expected it once, got it 2"),
        (r'{"id": "b", "text": "x\ud83d"}', r"line 2: text: .*half a surrogate pair, \\ud83d, at"),
        (r'{"id": "\ude00", "text": "x"}', r"line 2: id: .*half a surrogate pair, \\ude00, at"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(f'{{"id": "a", "text": "x"}}\n{line}\n')
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("曹操".encode("gb18030"), r"line 2: expected UTF-8, got the byte 0xb2 at 0"),
        (b'{"id": "b", "text": "\xed\xa0\xbd"}', "line 2: expected UTF-8, got the byte 0xed at 21"),
    ],
)
def test_bytes_that_are_not_utf_8_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"id": "a", "text": "x"}\n' + line)
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize(
    "encoding",
    ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "gb18030"],
)
def test_another_encoding_is_converted_as_the_message_says(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "a", "text": "曹操"}\n', encoding=encoding)
    with pytest.raises(UserError, match="line 1: expected UTF-8") as caught:
        read(path)
    command = caught.value.fix.removeprefix("convert the file: ").split()
    path.write_bytes(subprocess.run([*command, str(path)], capture_output=True, check=True).stdout)
    assert read(path)[0]["text"] == "曹操"


def test_a_line_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LONGEST_LINE_BYTES", 1000)
    path = tmp_path / "corpus.jsonl"
    line = json.dumps({"id": "a", "text": "x" * 900})
    path.write_text(line)
    assert len(read(path)) == 1
    path.write_text(line + " " * 100)
    with pytest.raises(UserError, match=r"line 1: expected a line of at most 1,000 bytes"):
        read(path)


def test_long_documents_come_in_small_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "CHARACTERS_PER_TABLE", 100)
    path = tmp_path / "corpus.jsonl"
    lengths = [1, 1, 99, 300, 5]
    rows = [{"id": str(number), "text": "字" * length} for number, length in enumerate(lengths)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (file,) = find_source(str(path))
    tables = list(file.read())
    assert [len(table) for table in tables] == [3, 1, 1]
    assert [row["text"] for row in read(path)] == [row["text"] for row in rows]


def test_damaged_dumps_are_refused(tmp_path: Path) -> None:
    path = write_dump(tmp_path / "a.xml.bz2", pages=50)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"BZh9 no", bz2.compress(b"<mediawiki><page>")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.xml\.bz2: (page 1: )?expected a whole XML dump"):
            read(path)


@pytest.mark.parametrize("packed", PACKERS)
def test_every_page_of_a_dump_counts_or_it_is_refused(tmp_path: Path, packed: str) -> None:
    pack = PACKERS[packed]
    path = tmp_path / f"zhwiki-pages-articles1.xml-p1p187712{packed}"
    # More than the parser reads at once, so that what comes behind is not seen by it.
    dump = pack(dump_xml(pages=100).encode())
    path.write_bytes(dump)
    assert len(read(path)) == 100
    path.write_bytes(dump + pack(b" \n" * 50_000))
    assert len(read(path)) == 100
    path.write_bytes(dump + pack(b" \n" * 50_000) + dump)
    with pytest.raises(
        UserError, match="expected the end of the file after </mediawiki>, got more"
    ):
        read(path)


@pytest.mark.parametrize("rest", ["x", "\n<mediawiki/>"])
def test_what_stands_after_a_small_dump_is_refused(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "zhwiki.xml"
    dump = dump_xml(pages=1, text="曹操").encode()
    # The parser reads so many bytes at once: the closing tag ends before, across and after them.
    padding = PARSER_BYTES - len(dump)
    for more in (0, padding, padding + 1, padding + 6, padding + 13):
        page = dump.replace(b"<mediawiki", b" " * more + b"<mediawiki", 1)
        path.write_bytes(page)
        assert len(read(path)) == 1
        path.write_bytes(page + rest.encode())
        with pytest.raises(UserError, match="expected the end of the file after </mediawiki>"):
            read(path)


def test_redirects_in_every_wording_are_no_articles(tmp_path: Path) -> None:
    path = tmp_path / "zhwiki.xml"
    for words in ("#REDIRECT", "#redirect", "#重定向", "#重新導向"):
        path.write_text(dump_xml(text=f"{words} [[曹操]]"), encoding="utf-8")
        (file,) = find_source(str(path))
        assert not list(file.read())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<!DOCTYPE html><html><p>503", "expected a whole XML dump of a wiki.*, got <html>"),
        ("<feed></feed>", "got <feed>"),
        ("503 Service Unavailable", "expected a whole XML dump of a wiki"),
        ("", "expected a whole XML dump of a wiki"),
        (dump_xml()[:-20], "page 6: expected a whole XML dump of a wiki"),
        (dump_xml().replace("<id>2</id>", ""), r"page 2: expected a page with its id"),
        (
            dump_xml().replace("<page>", "<logitem><id>1</id></logitem><page>", 1),
            "page 1: expected <page>, got <logitem>",
        ),
        (
            dump_xml().replace("<id>2</id>", "<id>x</id>"),
            "page 2: id: expected a whole number, got",
        ),
        (
            dump_xml().replace("<ns>0</ns>", "<ns>文</ns>"),
            "page 1: ns: expected a whole number, got",
        ),
        (dump_xml().replace("曹 3</title>", "曹 3</titl>"), "page 3: expected a whole XML dump"),
        (
            dump_xml()
            .replace("<?", "")
            .replace("<mediawiki", "<?xml version='1.0' encoding='gb2312'?><mediawiki"),
            "expected a whole XML dump",
        ),
    ],
)
def test_what_is_not_a_dump_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "zhwiki.xml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"zhwiki\.xml: .*{message}"):
        read(path)


@pytest.mark.parametrize("title", ["", "<title></title>", "<title/>", "<title> </title>"])
@pytest.mark.parametrize("ns", ["<ns>0</ns>", "<ns/>", ""])
def test_a_page_without_a_title_has_the_empty_one(tmp_path: Path, title: str, ns: str) -> None:
    path = tmp_path / "zhwiki.xml"
    dump = dump_xml().replace("<title>曹 2</title><ns>0</ns>", title + ns)
    path.write_text(dump, encoding="utf-8")
    rows = read(path)
    assert [row["title"] for row in rows] == ["曹 1", "", "曹 3"]
    assert rows[1] == {**rows[0], "id": "2", "url": "", "title": ""}


def test_the_title_names_the_namespace_in_a_dump_of_before_2012(tmp_path: Path) -> None:
    path = tmp_path / "zhwiki.xml"
    dump = dump_xml().replace("<ns>0</ns>", "").replace("<title>曹 2", "<title>Template:曹 2")
    path.write_text(dump.replace("<title>曹 3", "<title>其他:曹 3"), encoding="utf-8")
    assert [row["title"] for row in read(path)] == ["曹 1", "其他:曹 3"]


def test_the_last_of_several_revisions_counts(tmp_path: Path) -> None:
    path = tmp_path / "zhwiki.xml"
    older = "<revision><id>1</id><text>旧文</text></revision>\n    <revision>"
    path.write_text(dump_xml(text="新文").replace("<revision>", older), encoding="utf-8")
    assert {row["text"] for row in read(path)} == {"新文"}


def test_pages_that_were_read_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "zhwiki.xml"
    path.write_text(dump_xml(pages=2500, text="曹操"), encoding="utf-8")
    (file,) = find_source(str(path))
    for _ in file.read():
        # By type: `isinstance` would ask proxies of other libraries for their class.
        assert sum(type(found) is Element for found in gc.get_objects()) < 1000


def test_entities_that_grow_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "zhwiki.xml"
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(10))
    head = f'<!DOCTYPE mediawiki [<!ENTITY e0 "0123456789">{entities}]>'
    path.write_text(head + dump_xml(text="&e10;"), encoding="utf-8")
    with pytest.raises(UserError, match="expected a whole XML dump"):
        read(path)


def test_half_a_character_in_wikitext_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "zhwiki.xml"
    path.write_text(dump_xml(text="曹&amp;#xD83D;操"), encoding="utf-8")
    assert read(path)[0]["text"] == "曹\ufffd操"


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.bz2", "dump.xml.bz2", "a.parquet"])
def test_skipped_rows_are_those_at_the_start(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = [{"id": str(number), "text": f"文{number}"} for number in range(25)]
    lines = "\n\n".join(json.dumps(row) for row in rows).encode()
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif "xml" in name:
        write_dump(path, pages=25)
    else:
        path.write_bytes(PACKERS[path.suffix.replace(".jsonl", "")](lines))
    (file,) = find_source(str(path))
    whole = pa.concat_tables(file.read())
    assert len(whole) == 25
    for skip in (1, 6, 7, 8, 24, 25, 26):
        tables = [whole.slice(0, 0), *file.read(skip)]
        assert pa.concat_tables(tables).equals(whole.slice(skip))
