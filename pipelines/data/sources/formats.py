"""Read sources that are not parquet: JSON lines, and the XML dumps of Wikipedia.

Both are read in constant memory, as tables of `RAW_SCHEMA`.
"""

import codecs
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from pipelines.data.sources.reading import Place, RefusedError
from pipelines.data.sources.wikitext import plain_text
from pipelines.data.text.documents import RAW_SCHEMA

ROWS_PER_TABLE = 1024
# A table of fewer rows, where they are long: 1,024 books would not fit into memory.
CHARACTERS_PER_TABLE = 1 << 24
LONGEST_LINE_BYTES = 1 << 27
ARTICLES = 0
REDIRECT = re.compile(r"^\s*#(?:REDIRECT|重定向|重新導向)", re.IGNORECASE)
LONGEST_TAG = 256
END_OF_DUMP = re.compile(rb"</(?:[\w.-]+:)?mediawiki\s*>")
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
BYTE_ORDER_MARK = "\ufeff"
# The longer marks first: UTF-32 begins as UTF-16 does.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
NO_PAGES = "download the dump again; it must be one of pages, such as pages-articles"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def open_file(path: Path) -> BinaryIO:
    """Open a file, decompressing `.gz`, `.bz2` and `.zst`.

    Arrow decompresses: Python's own bz2 ends in silence where a second stream is damaged.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    if path.stat().st_size == 0:
        raise RefusedError(
            f"expected {compression} data, got an empty file", "download or write it again"
        )
    stream: Any = pa.input_stream(str(path), compression=compression)
    return io.BufferedReader(stream, 1 << 17)


def read_json_lines(path: Path, skip: int, place: Place) -> Iterator[pa.Table]:
    """Read a file with one JSON object per line: `id`, `text`, and optionally `url` and `title`.

    Args:
        path: A `.jsonl` or `.ndjson` file; it may be compressed.
        skip: Documents to skip at its start, without parsing them.
        place: Kept at the line.

    Yields:
        Tables of `RAW_SCHEMA`; a missing url or title is the empty string, as is null, and an
        id that is an integer is written in decimal digits.

    Raises:
        RefusedError: If a line is not such an object.
    """
    with open_file(path) as stream:
        yield from _tables(_json_row(line) for line in islice(_lines(stream, place), skip, None))


def _lines(stream: BinaryIO, place: Place) -> Iterator[bytes]:
    """Yield the lines that are not blank."""
    for number in count(1):
        place.row = f"line {number}"
        line = stream.readline(LONGEST_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > LONGEST_LINE_BYTES:
            raise RefusedError(
                f"expected a line of at most {LONGEST_LINE_BYTES:,} bytes, got a longer one",
                "write one object per line, and split a document of this size",
            )
        if not line.isspace():
            yield line


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next((name for name in RAW_SCHEMA.names if keys.count(name) > 1), None)
        if repeated is not None:
            raise RefusedError(
                f"{repeated}: expected it once, got it {keys.count(repeated)} times",
                "give every object one id, url, title and text",
            )
    return found


JSON_TYPES = {dict: "an object", list: "an array", bool: "a boolean", type(None): "null"}
DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _json_row(line: bytes) -> dict[str, str]:
    try:
        text = line.decode().removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        got = _encoding(line)
        raise RefusedError(
            f"expected UTF-8, got {got or f'the byte 0x{line[error.start]:02x} at {error.start}'}",
            f"convert the file: iconv -f {got or 'GB18030'} -t UTF-8",
        ) from error
    try:
        row = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError(
            f"expected a JSON object, got something else ({error})",
            "correct the line (one object per line, UTF-8)",
        ) from error
    if not isinstance(row, dict):
        raise RefusedError(
            f"expected a JSON object, got {_json_type(row)}",
            "write one object per line, with id and text",
        )
    values = {name: _json_value(row, name) for name in RAW_SCHEMA.names}
    # Only an escape can bring in half a pair: the decoder refuses its bytes.
    if b"\\u" in line:
        _check_pairs(values)
    return values


def _encoding(line: bytes) -> str | None:
    """Name the encoding of the first line of a file in UTF-16 or UTF-32."""
    name = next((name for mark, name in MARKS.items() if line.startswith(mark)), None)
    # Without a mark, the zeros of the ASCII characters tell.
    zeros = (b"{\0\0\0", b"\0\0\0{", b"{\0", b"\0{")
    names = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
    unmarked = (name for zero, name in zip(zeros, names, strict=True) if line.startswith(zero))
    return name or next(unmarked, None)


def _json_value(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None and name in ("url", "title"):
        return ""
    if name == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or (name == "id" and not value):
        got = "an empty one" if value == "" else _json_type(value)
        raise RefusedError(
            f"{name}: expected a string, got {got if name in row else 'nothing'}",
            "give every document an id (a string or an integer) and a text, and a url and a "
            "title as string, null or not at all",
        )
    return value


def _json_type(value: Any) -> str:
    return JSON_TYPES.get(type(value), "a string" if isinstance(value, str) else "a number")


def _check_pairs(values: dict[str, str]) -> None:
    for name, value in values.items():
        if half := LONE_SURROGATE.search(value):
            raise RefusedError(
                f"{name}: expected whole characters, got half a surrogate pair, "
                f"\\u{ord(half[0]):x}, at character {half.start()}",
                "write the character as UTF-8, or as both halves of the pair",
            )


def read_wikipedia_dump(path: Path, skip: int, place: Place) -> Iterator[pa.Table]:
    """Read the articles of a `pages-articles` dump as plain text.

    mwxml reads the XML, and `plain_text` the wikitext. Templates, tables, references and
    files are removed, links keep their words. Redirects and other namespaces are skipped. A
    missing title is the empty string.

    Args:
        path: An `.xml` file; it may be compressed.
        skip: Articles to skip at its start; their wikitext is not parsed.
        place: Kept at the page.

    Yields:
        Tables of `RAW_SCHEMA`.

    Raises:
        RefusedError: If the file is not a dump, or goes on after its end.
    """
    from mwxml.element_iterator import ElementIterator

    with open_file(path) as stream:
        read = _LastRead(stream)
        root = ElementIterator.from_file(read)
        if root.tag != "mediawiki":
            raise RefusedError(
                f"expected a whole XML dump of a wiki, which begins with <mediawiki>, "
                f"got <{root.tag}>",
                "download the dump again (was an error page saved in its place?)",
            )
        yield from _tables(_articles(root, skip, place))
        # The parser stops at the end of the first dump.
        rest = read.last[end.end() :] if (end := END_OF_DUMP.search(read.last)) else b""
        while not rest or rest.isspace():
            rest = stream.read(1 << 20)
            if not rest:
                return
        raise RefusedError(
            "expected the end of the file after </mediawiki>, got more",
            "give every dump a file of its own",
        )


class _LastRead:
    """A stream that keeps what was read last: the parser is fed with more than it uses.

    Args:
        stream: The bytes.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.last = b""
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes."""
        data = self._stream.read(size)
        # The closing tag of the dump may begin in one piece and end in the next.
        self.last = self.last[-LONGEST_TAG:] + data
        return data


def _articles(root: Any, skip: int, place: Place) -> Iterator[dict[str, str]]:
    host, namespaces, elements = _opened(root)
    pages = _pages(elements, namespaces, place, root.element.clear)
    for page in islice(pages, skip, None):
        url = f"{host}/{page.title.replace(' ', '_')}" if host and page.title else ""
        # `&#xD800;` in wikitext is half a character, which browsers show as this one.
        text = LONE_SURROGATE.sub("\ufffd", plain_text(page.wikitext))
        yield {"id": str(page.id), "url": url, "title": page.title, "text": text}


def _opened(root: Any) -> tuple[str, dict[str, str], Iterator[Any]]:
    """Return the address of the wiki, its namespaces (name to number), and its pages.

    Unlike mwxml's `Dump`, this takes a dump without `<siteinfo>`, as tools write that extract or
    divide dumps: the address is then unknown, and so are the names of namespaces.
    """
    elements = iter(root)
    first = next(elements, None)
    if first is None or first.tag != "siteinfo":
        return "", {}, chain([] if first is None else [first], elements)
    base, namespaces = "", {}
    for part in first:
        if part.tag == "base":
            base = part.text or ""
        elif part.tag == "namespaces":
            namespaces = {child.text or "": child.attr("key", "") for child in part}
    return base.rsplit("/", 1)[0], namespaces, elements


@dataclass(frozen=True)
class _Page:
    """A page of a wiki; a title may be missing, as in every other format."""

    id: int
    title: str
    namespace: int
    is_redirect: bool
    wikitext: str


def _pages(
    elements: Iterator[Any],
    namespaces: dict[str, str],
    place: Place,
    on_page: Callable[[], None],
) -> Iterator[_Page]:
    """Yield articles that are not redirects."""
    for number in count(1):
        place.row = f"page {number}"
        # The tree would keep an empty element of every page.
        on_page()
        element = next(elements, None)
        if element is None:
            return
        page = _page(element, namespaces)
        # The parser is to leave the element before the next one begins.
        element.clear()
        if page.namespace != ARTICLES or page.is_redirect:
            continue
        place.row = f"page {number} ({page.title})" if page.title else place.row
        if page.wikitext and not REDIRECT.match(page.wikitext):
            yield page


def _page(element: Any, namespaces: dict[str, str]) -> _Page:
    """Read a page; mwxml's own `Page` fails on a page without a title."""
    if element.tag != "page":
        raise RefusedError(f"expected <page>, got <{element.tag}>", NO_PAGES)
    found = {"title": "", "ns": "", "id": ""}
    wikitext, is_redirect = "", False
    for part in element:
        if part.tag in found:
            found[part.tag] = (part.text or "").strip()
        elif part.tag == "redirect":
            is_redirect = True
        elif part.tag == "revision":
            # A `pages-articles` dump has one revision per page; of several, the last one counts.
            wikitext = "".join(child.text or "" for child in part if child.tag == "text")
    title, namespace = found["title"].replace("_", " "), found["ns"]
    # Dumps from before 2012 have no <ns>: the title begins with the name of the namespace.
    prefix, colon, rest = found["title"].partition(":")
    if not namespace:
        is_named = colon and prefix in namespaces and not rest.startswith(" ")
        namespace = namespaces[prefix] if is_named else str(ARTICLES)
    number = _number("id", found["id"])
    return _Page(number, title, _number("ns", namespace), is_redirect, wikitext)


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise RefusedError(
            f"{name}: expected a whole number, got {text[:80]!r}"
            if text
            else f"expected a page with its {name}, got none",
            NO_PAGES,
        ) from None


def _tables(rows: Iterable[dict[str, str]]) -> Iterator[pa.Table]:
    waiting: list[dict[str, str]] = []
    characters = 0
    for row in rows:
        waiting.append(row)
        characters += len(row["text"])
        if len(waiting) == ROWS_PER_TABLE or characters >= CHARACTERS_PER_TABLE:
            yield pa.Table.from_pylist(waiting, schema=RAW_SCHEMA)
            waiting, characters = [], 0
    if waiting:
        yield pa.Table.from_pylist(waiting, schema=RAW_SCHEMA)
