"""Convert wikitext, as it stands in the dumps of Wikipedia, to plain text.

The time is linear in the text, and nothing is too deeply nested.
"""

import html
import re
from typing import Any

from pipelines.data.wiki.brackets import resolve
from pipelines.data.wiki.marks import (
    HEADING_LINE,
    MAGIC_WORD,
    PLAIN_FORMULA,
    QUOTES,
    READING,
    TAG,
    bare_heading,
    formula_text,
    reading_text,
)
from pipelines.data.wiki.sections import reference_sections
from pipelines.data.wiki.spans import (
    comments,
    cut,
    tables,
    tag_pairs,
    tag_pattern,
    without_empty_brackets,
)
from pipelines.data.wiki.variants import undecided

_UNREAD = tag_pairs(
    tag_pattern(
        (
            "ref", "table", "gallery", "imagemap", "math", "chem", "ce", "timeline", "graph",
            "hiero", "syntaxhighlight", "source", "score",
        )
    )
)  # fmt: skip
_VERBATIM = re.compile(r"<(nowiki|pre)\b[^<>]*(?<!/)>([^<]*)</\1\s*>", re.IGNORECASE)
_EXTERNAL_LINK = re.compile(r"\[(?:(?:https?|ftp):)?//[^\s\[\]]*+(?:[ \t]++([^\[\]\n]*+))?\]")
_LINE_MARK = re.compile(r"^[ \t]*(?:[*#:;]+[ \t]*|-{4,})", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n[ \t]*+\n\s*+")


def plain_text(wikitext: str) -> str:
    """Convert wikitext to plain text.

    Tables, references, files, categories and the templates that carry no text are removed, and
    so are sections of references. Links and templates with text keep it. Where every reader
    sees another form, `-{zh-hans:...; zh-hant:...}-` stays: `clean` chooses by `clean.script`.
    """
    text = cut(wikitext, comments(wikitext), _ignore)
    text = PLAIN_FORMULA.sub(formula_text, _VERBATIM.sub(_as_entities, text))
    text = cut(text, _UNREAD(text), _ignore)
    text = cut(text, tables(text), _ignore)
    text = resolve(text, undecided, _ignore)
    text = cut(text, reference_sections(text), _ignore)
    text = _EXTERNAL_LINK.sub(lambda match: match[1] or "", text)
    text = READING.sub(reading_text, text)
    for pattern in (TAG, MAGIC_WORD, QUOTES, _LINE_MARK):
        text = pattern.sub("", text)
    text = HEADING_LINE.sub(bare_heading, text)
    text = without_empty_brackets(html.unescape(text), _ignore)
    return _BLANK_LINES.sub("\n\n", text).strip()


def _as_entities(match: re.Match[str]) -> str:
    """Hide marks that are to be read as they stand."""
    return re.sub(r"[\[\]{}|'=*#:;_-]", lambda mark: f"&#{ord(mark[0])};", match[2])


def _ignore(*_: Any) -> None:
    """Count nothing: the raw text has no record of what the reader left out."""
