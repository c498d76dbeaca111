"""Find reference sections: their headings, and where they end.

With `==` marks a section ends at the next heading of its level or above. Extractors strip the
marks, and then a heading is a short line like others. So without marks a section goes only as
far as its lines are references by other signs, or, at the end of a page, if it is short and has
no sentence. A list that stays does no harm; a text that is cut is lost.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_TAIL_CHARACTERS = 2000
# A marked last section ends at a line of text this long, as nothing else would end it.
MIN_TEXT_CHARACTERS = 15

_NOTES = r"[注註][释釋解]|[脚腳][注註]"
_OTHERS = (
    r"[参參]考(?:文[献獻]|[资資]料|[来來]源|[书書][目籍]|[链鏈連][接結结])?|[参參][见見看閱阅]|"
    r"外部(?:[链鏈][接結结]|[连連][接結结])|延伸[阅閱][读讀]|[进進][阶階][阅閱][读讀]|相[关關][条條]目"
)
# Its start is that of the line, in a text to which a line end was prepended.
# All that may repeat is separated by what it cannot hold, so a search never goes back.
_HEADING = re.compile(
    rf"\n[ \t]*(?:(?P<before>=+)[ \t]*)?(?P<name>(?:{_NOTES}|{_OTHERS})"
    rf"(?:[与與和及、/／](?:{_NOTES}|{_OTHERS}))?)[:：]?[ \t]*(?:(?P<after>=+)[ \t]*)?$",
    re.MULTILINE,
)
_ONLY_NOTES = re.compile(rf"(?:{_NOTES})(?:[^\w\s](?:{_NOTES}))?")
_SENTENCE = re.compile("[。！？]")
_HARD = re.compile(
    r"https?://|www\.|(?<![a-z])(?:ISBN|ISSN|doi|arXiv)(?![a-z])|\[[MJCND]\]|"
    r"(?<![a-z])pp?\. ?\d|出版社|^[ \t]*[\^↑]",
    re.IGNORECASE,
)
_SOFT = re.compile(
    r"(?<!\d)(?:1[5-9]|20)\d\d(?!\d)|《|网站|網站|官网|官網|"
    r"(?<![A-Za-z])(?:[A-Za-z]{2,}+\W++){3}"
)
_LIST = re.compile(r"[ \t]*(?:[*#:;•·▪●]|[-–—][ \t])")  # fmt: skip


@dataclass(frozen=True)
class _Line:
    start: int
    end: int
    level: int
    is_blank: bool
    is_text: bool
    is_hard: bool
    is_reference: bool


def reference_sections(text: str) -> Iterator[tuple[int, int]]:
    """Find the sections that hold references, notes and links, with their headings.

    Args:
        text: A page, with `==` around its headings or without.

    Yields:
        (start, end) of each, in order.
    """
    headings = list(_HEADING.finditer(f"\n{text}"))
    if not headings:
        return
    page = _Page(text, headings[0].start())
    position = 0
    for heading in headings:
        if heading.start() < position:
            continue
        is_marked = heading["before"] and heading["after"]
        end = page.marked_end(heading) if is_marked else page.bare_end(heading)
        if end is not None:
            yield heading.start(), end
            position = end


class _Page:
    """The lines from the first such heading on, read once: there may be thousands of headings."""

    def __init__(self, text: str, start: int) -> None:
        self.text = text
        self.lines = list(_lines(text, start))
        self.number_at = {line.start: number for number, line in enumerate(self.lines)}
        # The number of the first line of text from each line on.
        self.next_text = [len(self.lines)] * (len(self.lines) + 1)
        for number in reversed(range(len(self.lines))):
            is_text = self.lines[number].is_text
            self.next_text[number] = number if is_text else self.next_text[number + 1]
        self.first_sentence = _SENTENCE.search(text)
        # Where the section of each marked heading ends, if a heading ends it.
        self.section_end: dict[int, int] = {}
        open_sections: list[_Line] = []
        for line in self.lines:
            while line.level and open_sections and open_sections[-1].level >= line.level:
                self.section_end[open_sections.pop().start] = line.start
            if line.level:
                open_sections.append(line)

    def marked_end(self, heading: re.Match[str]) -> int:
        if heading.start() in self.section_end:
            return self.section_end[heading.start()]
        number = self.next_text[self.number_at[heading.start()] + 1]
        while number < len(self.lines):
            line = self.lines[number]
            is_long = line.end - line.start >= MIN_TEXT_CHARACTERS
            if is_long and not _LIST.match(self.text, line.start):
                return line.start
            number = self.next_text[number + 1]
        return len(self.text)

    def bare_end(self, heading: re.Match[str]) -> int | None:
        start = self.number_at[heading.start()] + 1
        is_notes = _ONLY_NOTES.fullmatch(heading["name"]) is not None
        if not is_notes and self._is_tail(heading, start):
            return len(self.text)
        last = None
        number = start
        while number < len(self.lines):
            line = self.lines[number]
            if not (line.is_blank or line.is_hard or (line.is_reference and not is_notes)):
                break
            if line.is_hard or (line.is_reference and not self._is_title(number)):
                last = number
            number += 1
        return None if last is None else self.lines[last].end

    def _is_tail(self, heading: re.Match[str], start: int) -> bool:
        """Whether the page ends with a short list here, after sentences."""
        length = len(self.text) - heading.start()
        return (
            self.next_text[start] == len(self.lines)
            and length <= min(MAX_TAIL_CHARACTERS, len(self.text) // 2)
            and self.first_sentence is not None
            and self.first_sentence.start() < heading.start()
        )

    def _is_title(self, number: int) -> bool:
        """Whether the next line is text, so that this one may be its heading."""
        after = number + 1
        while after < len(self.lines) and self.lines[after].is_blank:
            after += 1
        return after < len(self.lines) and self.lines[after].is_text


def _lines(text: str, start: int) -> Iterator[_Line]:
    while start <= len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line = text[start:end]
        is_hard = _HARD.search(line) is not None
        is_soft = _SOFT.search(line) is not None
        has_sentence = _SENTENCE.search(line) is not None
        is_text = not is_hard and (has_sentence or ("，" in line and not is_soft))
        words = line.strip(" \t")
        level = min(len(words) - len(words.lstrip("=")), len(words) - len(words.rstrip("=")))
        yield _Line(
            start,
            end,
            level=level if level < len(words) else 0,
            is_blank=not line.strip(),
            is_text=is_text,
            is_hard=is_hard,
            is_reference=is_hard or (is_soft and not is_text),
        )
        start = end + 1
