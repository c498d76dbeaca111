"""Templates, links and language variants, which nest in each other, resolved in one pass.

The time is linear in the text, whatever is nested, crossed or left open. What is never closed
stays as it is.
"""

import re
from collections.abc import Callable

from pipelines.data.wiki.templates import template_text

# As MediaWiki's limit for templates: what is nested deeper prints nothing. So a character is
# copied at most this many times.
MAX_DEPTH = 40
# How far below the innermost open bracket a closing one looks for its own.
MAX_CROSSED = 3
PIECE_CHARACTERS = 500

FILE = re.compile(
    r"\s*(?:File|Image|Media|Category|文件|檔案|档案|图像|圖像|媒体|媒體|分类|分類)\s*[:：]",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\n|\||-?\{+|\}+-?|\[\[|\]\]")
_BRACES = {"{{": 2, "{{{": 3}


def resolve(text: str, choose: Callable[[str], str], note: Callable[[str, str], None]) -> str:
    """Replace templates, links and variants by what a reader sees of them.

    Args:
        text: Text with markup, but without comments, references and tables.
        choose: From the content of `-{...}-` to what takes its place.
        note: Called with `variant`, `template`, `file` or `link`, and the start of what was
            replaced.

    Returns:
        The text.
    """
    return _Resolver(text, choose, note).run()


class _Open:
    """A bracket that is open: where it begins in the text, among the pieces and among the bars."""

    __slots__ = ("broken", "first", "first_bar", "kind", "start")

    def __init__(self, kind: str, start: int, first: int, first_bar: int) -> None:
        self.kind = kind
        self.start = start
        self.first = first
        self.first_bar = first_bar
        # Whether a line ends where none may: in the target of a link.
        self.broken = False


class _Resolver:
    def __init__(
        self, text: str, choose: Callable[[str], str], note: Callable[[str, str], None]
    ) -> None:
        self.text = text
        self.choose = choose
        self.note = note
        # What is read so far, with the marks of open brackets: these stay if none closes them.
        self.pieces: list[str] = []
        self.stack: list[_Open] = []
        # The pieces that are bars of open brackets, in one list: one per bracket would make
        # Python's garbage collector slow on pages of brackets that are never closed.
        self.bars: list[int] = []
        self.last_line = self.last_blank = -1

    def run(self) -> str:
        position = 0
        while match := _TOKEN.search(self.text, position):
            start, end = match.span()
            if start > position:
                self.pieces.append(self.text[position:start])
            position = end
            mark = match[0]
            if mark == "\n":
                self._end_line(start)
            elif mark == "|":
                self._end_argument()
            elif mark == "[[":
                self._open(mark, start)
            elif mark == "]]":
                self._close_link(end)
            elif mark[0] == "}":
                position = self._close_braces(mark, end)
            else:
                self._open_braces(mark, start)
        self.pieces.append(self.text[position:])
        return "".join(self.pieces)

    def _end_line(self, start: int) -> None:
        if start == self.last_line + 1:
            self.last_blank = start
        self.last_line = start
        if self.stack and self.stack[-1].first_bar == len(self.bars):
            self.stack[-1].broken = True
        self.pieces.append("\n")

    def _end_argument(self) -> None:
        if self.stack:
            self.bars.append(len(self.pieces))
        self.pieces.append("|")

    def _open(self, kind: str, start: int) -> None:
        if kind == "{{{":
            # A piece of its own, as two braces may be all that is closed.
            self.pieces.append("{")
        self.stack.append(_Open(kind, start, len(self.pieces), len(self.bars)))
        self.pieces.append(kind[:2])

    def _open_braces(self, braces: str, start: int) -> None:
        count = braces.count("{")
        kinds = ["{{"] * (count // 2)
        if count % 2 and braces[0] == "-":
            kinds.insert(0, "-{")
        elif braces[0] == "-":
            self.pieces.append("-")
            start += 1
        elif count == 1:
            self.pieces.append("{")
        elif count % 2:
            kinds[-1] = "{{{"
        for kind in kinds:
            self._open(kind, start)
            start += len(kind)

    def _close_braces(self, braces: str, end: int) -> int:
        """Close what these braces can close, and return where the rest of the text begins."""
        dash = braces[-1] == "-"
        left = len(braces) - dash
        end -= len(braces)
        while left:
            kind = self.stack[-1].kind if self.stack else ""
            if kind == "{{{" and left == 2:
                # One too many: a brace before a template.
                self.stack[-1].kind = kind = "{{"
                self.stack[-1].start += 1
            if left >= _BRACES.get(kind, left + 1):
                left -= _BRACES[kind]
                end += _BRACES[kind]
                self._close(end)
            elif left >= 2 and self._drop_to("{{"):
                continue
            elif dash and (kind == "-{" or self._drop_to("-{")):
                self.pieces.append("}" * (left - 1))
                self._close(end + left + 1)
                return end + left + 1
            else:
                break
        self.pieces.append("}" * left)
        # The dash may belong to the next mark: `}}-{`.
        return end + left

    def _close_link(self, end: int) -> None:
        if (self.stack and self.stack[-1].kind == "[[") or self._drop_to("[["):
            self._close(end)
        else:
            self.pieces.append("]]")

    def _drop_to(self, kind: str) -> bool:
        """Make text of the innermost brackets, if one of this kind lies right below."""
        if kind not in [bracket.kind for bracket in self.stack[-1 - MAX_CROSSED : -1]]:
            return False
        while self.stack[-1].kind != kind:
            self._pop()
        return True

    def _close(self, end: int) -> None:
        top, bars = self._pop()
        rule, seen = "template", ""
        if len(self.stack) < MAX_DEPTH:
            arguments = self._arguments(top, bars)
            if top.kind == "[[":
                is_file = FILE.match(arguments[0]) is not None
                # One closed far below is no link: there is text in between.
                if top.broken or (is_file and self.last_blank > top.start):
                    self.pieces.append("]]")
                    return
                rule = "file" if is_file else "link"
                if not is_file:
                    seen = "|".join(arguments[1:]) or arguments[0].removeprefix(":")
            elif top.kind == "-{":
                rule, seen = "variant", self.choose("|".join(arguments))
            elif top.kind == "{{{":
                # A parameter prints its default.
                seen = "|".join(arguments[1:])
            else:
                seen = template_text(arguments)
        del self.pieces[top.first - (top.kind == "{{{") :]
        self.pieces.append(seen)
        self.note(rule, self.text[top.start : min(end, top.start + PIECE_CHARACTERS)])

    def _pop(self) -> tuple[_Open, list[int]]:
        """Take the innermost bracket off the stack, and its bars."""
        top = self.stack.pop()
        bars = self.bars[top.first_bar :]
        del self.bars[top.first_bar :]
        return top, bars

    def _arguments(self, bracket: _Open, bars: list[int]) -> list[str]:
        ends = [*bars, len(self.pieces)]
        starts = [bracket.first, *ends]
        return ["".join(self.pieces[a + 1 : b]) for a, b in zip(starts, ends, strict=False)]
