"""Read sources that are not parquet: JSON lines, and the XML dumps of Wikipedia.

Both are read in constant memory, as tables of `RAW_SCHEMA`.
"""

import bz2
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree.ElementTree import ParseError

import pyarrow as pa

from pipelines.base.errors import UserError
from pipelines.data.sources.wikitext import plain_text
from pipelines.data.text.documents import RAW_SCHEMA

ROWS_PER_TABLE = 1024
ARTICLES = 0
REDIRECT = re.compile(r"^\s*#(?:REDIRECT|重定向)", re.IGNORECASE)


def open_file(path: Path) -> BinaryIO:
    """Open a file, decompressing `.bz2` and `.gz`."""
    openers: dict[str, Any] = {".bz2": bz2.open, ".gz": gzip.open}
    stream: BinaryIO = openers.get(path.suffix, open)(path, "rb")
    return stream


def read_json_lines(path: Path, skip: int = 0) -> Iterator[pa.Table]:
    """Read a file with one JSON object per line: `id`, `text`, and optionally `url` and `title`.

    Args:
        path: A `.jsonl` file; it may be compressed.
        skip: Documents to skip at its start, without parsing them.

    Yields:
        Tables of `RAW_SCHEMA`; a missing url or title is the empty string.

    Raises:
        UserError: If the file is damaged, or a line is not such an object.
    """
    try:
        with open_file(path) as stream:
            lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
            yield from _tables(
                _json_row(path, number, line) for number, line in islice(lines, skip, None)
            )
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, "file of JSON lines", error) from error


def _json_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(
            f"{path}: line {number}: expected a JSON object, got something else ({error})",
            "correct the line (one object per line, UTF-8)",
        ) from None
    if not isinstance(row, dict):
        raise UserError(
            f"{path}: line {number}: expected a JSON object, got {type(row).__name__}",
            "write one object per line, with id and text",
        )
    row = {"url": "", "title": "", **{key: row[key] for key in RAW_SCHEMA.names if key in row}}
    for name in RAW_SCHEMA.names:
        if not isinstance(row.get(name), str) or (name == "id" and not row[name]):
            got = type(row[name]).__name__ if name in row else "nothing"
            raise UserError(
                f"{path}: line {number}: {name}: expected a string, got {got}",
                "give every document an id and a text, as strings",
            )
    return row


def read_wikipedia_dump(path: Path, skip: int = 0) -> Iterator[pa.Table]:
    """Read the articles of a `pages-articles` dump as plain text.

    mwxml reads the XML, and `plain_text` the wikitext. Templates, tables, references and
    files are removed, links keep their words. Redirects and other namespaces are skipped.

    Args:
        path: An `.xml` file; it may be compressed.
        skip: Articles to skip at its start; their wikitext is not parsed.

    Yields:
        Tables of `RAW_SCHEMA`.

    Raises:
        UserError: If the file is damaged or is not a dump.
    """
    import mwxml
    from mwxml.errors import MalformedXML

    try:
        with open_file(path) as stream:
            dump = mwxml.Dump.from_file(stream)
            yield from _tables(_articles(dump, skip))
    except (OSError, EOFError, zlib.error, ParseError, MalformedXML) as error:
        raise _damaged(path, "XML dump of a wiki", error) from error


def _articles(dump: Any, skip: int) -> Iterator[dict[str, Any]]:
    host = dump.site_info.base or ""
    host = host.rsplit("/", 1)[0]
    for page, text in islice(_pages(dump), skip, None):
        title = page.title.replace(" ", "_")
        url = f"{host}/{title}" if host else ""
        yield {"id": str(page.id), "url": url, "title": page.title, "text": plain_text(text)}


def _pages(dump: Any) -> Iterator[tuple[Any, str]]:
    """Yield articles that are not redirects, with their wikitext."""
    for page in dump:
        if page.namespace != ARTICLES or page.redirect:
            continue
        # A `pages-articles` dump has one revision per page; of several, the last one counts.
        text = ""
        for revision in page:
            text = revision.text or ""
        if text and not REDIRECT.match(text):
            yield page, text


def _tables(rows: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    waiting: list[dict[str, Any]] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == ROWS_PER_TABLE:
            yield pa.Table.from_pylist(waiting, schema=RAW_SCHEMA)
            waiting = []
    if waiting:
        yield pa.Table.from_pylist(waiting, schema=RAW_SCHEMA)


def _damaged(path: Path, what: str, error: Exception) -> UserError:
    return UserError(
        f"{path}: expected a whole {what}, got one that cannot be read ({error})",
        "the file is cut off or damaged: download or write it again, or set "
        "ingest.on_bad_file: quarantine",
    )
