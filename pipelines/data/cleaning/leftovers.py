"""Remove what extractors of Wikipedia leave behind: empty brackets, markup, tables, references.

Each rule first looks for one or two characters, so text without them costs next to nothing.
What a rule removes is counted, and the first pieces are kept.
"""

import html
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from pipelines.data.wiki.brackets import PIECE_CHARACTERS, resolve
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
    Span,
    comments,
    cut,
    latex,
    tables,
    tag_pairs,
    tag_pattern,
    without_empty_brackets,
)
from pipelines.data.wiki.variants import Script, chooser

# Change it with the rules.
LEFTOVERS = 3
KEPT_PIECES = 100

_REFERENCES = tag_pairs(tag_pattern(("ref",)))
_FORMULAS = tag_pairs(tag_pattern(("math", "chem")))
_ENTITY = re.compile(
    r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|nbsp|amp|lt|gt|quot|ensp|emsp|thinsp|ndash|mdash|middot|hellip|"
    r"times);"
)
_CATEGORY = re.compile(r"[ \t]*(?:Category|分类|分類):")
_FIRST_COMMA = re.compile(r"([（(])[\s,，、;；]*[,，、;；][\s,，、;；]*")
# A search for one character is several times as fast as for two.
_COMMA_SIGNS = tuple(re.compile(rf"{bracket}[\s,，、;；]") for bracket in ("（", r"\("))


@dataclass
class Removed:
    """What was removed, by rule.

    Args:
        counts: How often each rule removed something.
        pieces: (document id, rule, text), the first of each rule.
    """

    counts: Counter[str] = field(default_factory=Counter)
    pieces: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, document: str, rule: str, piece: str) -> None:
        """Record one piece."""
        self.counts[rule] += 1
        if self.counts[rule] <= KEPT_PIECES:
            self.pieces.append((document, rule, piece[:PIECE_CHARACTERS]))


Note = Callable[[str], None]
Apply = Callable[[str, Note], str]


@dataclass(frozen=True)
class Rule:
    """One kind of leftover.

    Args:
        name: How counts and samples name it.
        signs: The rule is applied if the text has one of these.
        apply: From a text and a function that notes each piece, to the text without them.
    """

    name: str
    signs: tuple[str, ...]
    apply: Apply


def _each(pattern: re.Pattern[str], new: Callable[[re.Match[str]], str] | None = None) -> Apply:
    """Replace each match by what `new` returns, or by nothing; what stays is not noted."""

    def apply(text: str, note: Note) -> str:
        def replace(match: re.Match[str]) -> str:
            seen = new(match) if new else ""
            if seen != match[0]:
                note(match[0])
            return seen

        return pattern.sub(replace, text)

    return apply


def _cut(*finds: Callable[[str], Iterable[Span]]) -> Apply:
    """Remove the spans that the functions find."""

    def apply(text: str, note: Note) -> str:
        for find in finds:
            text = cut(text, find(text), note)
        return text

    return apply


def _formulas(text: str, note: Note) -> str:
    """Keep the words of formulas that can be read, and remove the others."""
    return _cut(_FORMULAS, latex)(_each(PLAIN_FORMULA, formula_text)(text, note), note)


def _categories(text: str) -> Iterator[Span]:
    """Find the lines of categories at the end; elsewhere `分类:` may begin a line of text."""
    first = position = len(text)
    while position > 0:
        line = text.rfind("\n", 0, position) + 1
        if _CATEGORY.match(text, line):
            first = line
        elif text[line:position].strip():
            break
        position = line - 1
    if first < len(text):
        yield first, len(text)


def _first_comma(text: str, note: Note) -> str:
    if not any(sign.search(text) for sign in _COMMA_SIGNS):
        return text
    return _each(_FIRST_COMMA, lambda match: match[1])(text, note)


# The rules before templates, links and variants, which are resolved together, and those after.
BEFORE: Sequence[Rule] = (
    Rule("comment", ("<!--",), _cut(comments)),
    Rule("formula", ("<math", "<chem", "{\\displaystyle"), _formulas),
    Rule("reference", ("<ref", "<REF"), _cut(_REFERENCES)),
    Rule("reading", ("<rt", "<RT"), _each(READING, reading_text)),
    Rule("tag", ("<",), _each(TAG)),
    Rule(
        "entity", ("&",), _each(_ENTITY, lambda match: html.unescape(match[0]).replace("\xa0", " "))
    ),
    Rule("table", ("{|",), _cut(tables)),
)
AFTER: Sequence[Rule] = (
    Rule("quotes", ("''",), _each(QUOTES)),
    Rule("magic word", ("__",), _each(MAGIC_WORD)),
    Rule("category", ("ategory:", "分类:", "分類:"), _cut(_categories)),
    Rule("reference section", ("\n",), _cut(reference_sections)),
    Rule("heading marks", ("==",), _each(HEADING_LINE, bare_heading)),
    Rule("empty brackets", ("（", "(", "「", "《", "【", "〈", "『"), without_empty_brackets),
    Rule("bracket's first comma", ("（", "("), _first_comma),
)  # fmt: skip


def _with_first(rules: Sequence[Rule]) -> list[tuple[Rule, list[tuple[str, str]]]]:
    """The first character of a sign is found in half the time, and most texts lack it."""
    return [(rule, [(sign[0], sign) for sign in rule.signs]) for rule in rules]


_BEFORE, _AFTER = _with_first(BEFORE), _with_first(AFTER)


def remove_leftovers(document: str, text: str, script: Script, removed: Removed) -> str:
    """Remove what a wiki extractor left in a text; rules of version `LEFTOVERS`.

    Args:
        document: The document's id, for the samples.
        text: A normalised text.
        script: The parameter `clean.script`: which form of `-{...}-` is shown.
        removed: Counts and samples are added to it.

    Returns:
        The text; normalise it again if it changed.
    """

    def note(rule: str, piece: str) -> None:
        removed.add(document, rule, piece)

    text = _apply(_BEFORE, text, note)
    if ("[" in text and "[[" in text) or ("{" in text and ("{{" in text or "-{" in text)):
        text = resolve(text, chooser(text, script), note)
    return _apply(_AFTER, text, note)


def _apply(
    rules: list[tuple[Rule, list[tuple[str, str]]]], text: str, note: Callable[[str, str], None]
) -> str:
    for rule, signs in rules:
        # A loop, as `any` of a generator costs more than all the searches.
        for first, sign in signs:
            if first in text and sign in text:
                text = rule.apply(text, partial(note, rule.name))
                break
    return text
