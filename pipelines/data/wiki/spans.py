"""Find what prints nothing: comments, pairs of tags, tables, formulas, empty brackets.

Each is one pass with a stack, so the time is linear in the text however much is left open.
"""

import re
from collections.abc import Callable, Iterable, Iterator

Span = tuple[int, int]

BETWEEN = r"\s,，、;；:：.。/／|-"
_PAIRS = {"（": "）", "(": ")", "「": "」", "『": "』", "《": "》", "〈": "〉", "【": "】"}
_ROUND = "（("
_TABLE = re.compile(r"^[ \t:]*\{\||^[ \t]*\|\}(?!\})", re.MULTILINE)
_FORMULA = re.compile(r"\{\\displaystyle\b|\{|\}")
# A character class first: the search skips to its characters, but not to alternatives.
_EMPTY = re.compile(
    rf"[（(「『《〈【](?:(?<=（)[{BETWEEN}]*+）|(?<=\()[{BETWEEN}]*+\)|"
    r"(?<=「)\s*+」|(?<=『)\s*+』|(?<=《)\s*+》|(?<=〈)\s*+〉|(?<=【)\s*+】)"
)
_ONLY_BETWEEN = re.compile(rf"[{BETWEEN}]+")
_BRACKET = re.compile(
    rf"[（(「『《〈【）)」』》〉】]|[{BETWEEN}]+|[^（(「『《〈【）)」』》〉】{BETWEEN}]+"
)


def cut(text: str, spans: Iterable[Span], note: Callable[[str], None]) -> str:
    """Remove spans; of one inside another, the outer one counts.

    Args:
        text: The text.
        spans: (start, end) of what goes, in any order; they nest or are apart.
        note: Called with every piece.

    Returns:
        What is left.
    """
    kept, position = [], 0
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start >= position:
            kept.append(text[position:start])
            note(text[start:end])
            position = end
    return "".join([*kept, text[position:]])


def comments(text: str) -> Iterator[Span]:
    """Find `<!-- ... -->`; of one that is not closed, only the mark: the rest may be text."""
    start = text.find("<!--")
    while start >= 0:
        end = text.find("-->", start + 4)
        if end < 0:
            yield from (match.span() for match in re.compile("<!--").finditer(text, start))
            return
        yield start, end + 3
        start = text.find("<!--", end + 3)


def tag_pairs(tag: re.Pattern[str]) -> Callable[[str], Iterator[Span]]:
    """Return a function that finds `<x>...</x>` and `<x/>`.

    Args:
        tag: A pattern of `tag_pattern`.
    """

    def find(text: str) -> Iterator[Span]:
        starts: dict[str, list[int]] = {}
        for match in tag.finditer(text):
            opened = starts.setdefault(match["name"].lower(), [])
            if match["close"]:
                # The nearest one: of `<ref>` left open, the text that follows is kept.
                if opened:
                    yield opened.pop(), match.end()
            elif match["attributes"].endswith("/"):
                yield match.span()
            else:
                opened.append(match.start())

    return find


def tag_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of the opening and closing tags with these names."""
    return re.compile(
        rf"<(?P<close>/?)(?P<name>{'|'.join(names)})\b(?P<attributes>[^<>]*)>", re.IGNORECASE
    )


def tables(text: str) -> Iterator[Span]:
    """Find `{| ... |}`, whose marks begin lines; one that is not closed is kept."""
    starts: list[int] = []
    for match in _TABLE.finditer(text):
        if match[0].endswith("{|"):
            starts.append(match.start())
        elif starts:
            yield starts.pop(), match.end()


def latex(text: str) -> Iterator[Span]:
    r"""Find `{\displaystyle ...}` with all braces inside it."""
    opened: list[tuple[int, bool]] = []
    for match in _FORMULA.finditer(text):
        if match[0] != "}":
            opened.append((match.start(), len(match[0]) > 1))
        elif opened:
            start, is_formula = opened.pop()
            if is_formula:
                yield start, match.end()


def without_empty_brackets(text: str, note: Callable[[str], None]) -> str:
    """Remove brackets with nothing in them but punctuation and other empty brackets.

    Args:
        text: The text.
        note: Called with every piece.
    """

    def replace(match: re.Match[str]) -> str:
        note(match[0])
        return ""

    text, count = _EMPTY.subn(replace, text)
    # Few texts have empty brackets around empty brackets, so the others pay for no stack.
    return cut(text, _empty_brackets(text), note) if count and _EMPTY.search(text) else text


def _empty_brackets(text: str) -> Iterator[Span]:
    opened: list[tuple[str, int]] = []
    # Whether there is text in each open bracket, and outside of all.
    is_full = [True]
    for match in _BRACKET.finditer(text):
        token = match[0]
        if token in _PAIRS:
            opened.append((token, match.start()))
            is_full.append(False)
        elif opened and token == _PAIRS[opened[-1][0]]:
            start = opened.pop()[1]
            if is_full.pop():
                is_full[-1] = True
            else:
                yield start, match.end()
        elif not token.isspace():
            is_round = bool(opened) and opened[-1][0] in _ROUND
            is_full[-1] |= not (is_round and _ONLY_BETWEEN.fullmatch(token))
