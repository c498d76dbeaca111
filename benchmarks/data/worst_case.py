"""Time the cleaning of pages that are nothing but markup, open, crossed or nested.

`python -m benchmarks.data.worst_case` repeats every kind of `KINDS` 5,000 to 80,000 times, and
times the rules of `clean` and the reader of dumps on each page. A row holds the time of all
kinds together at one size, and the last two the steepest kind: its time at 80,000 over its
time at 20,000, which is 4 if the time is linear, and 16 if it is quadratic.
"""

import time
from collections.abc import Callable
from typing import Any

from benchmarks.record import row, write
from pipelines.data.cleaning.leftovers import Removed, remove_leftovers
from pipelines.data.sources.wikitext import plain_text

SIZES = (5_000, 10_000, 20_000, 40_000, 80_000)
MAX_RATIO = 6
# What is repeated, and what is repeated after it.
KINDS = {
    "references": ("甲<ref>乙</ref>", ""),
    "references left open": ('甲<ref name="a">乙', ""),
    "references, every second one left open": ("甲<ref>乙<ref>丙</ref>", ""),
    "references that only end": ("甲</ref>", ""),
    "references inside each other": ("<ref>甲", "</ref>"),
    "readings": ("甲<rt>乙</rt>", ""),
    "readings left open": ("甲<rt>乙", ""),
    "readings inside each other": ("<rt>甲", "</rt>"),
    "brackets of readings": ("<rp>（</rp>", ""),
    "tags without an end": ("<ref ", ""),
    "tags with half an attribute": ("<b a=", ""),
    "formulas left open": ("<math>a", ""),
    "LaTeX left open": (r"{\displaystyle {a}", ""),
    "LaTeX inside itself": (r"{\displaystyle {a}", "}"),
    "comments left open": ("<!--甲", ""),
    "templates left open": ("{{a|", ""),
    "templates with text, inside each other": ("{{nowrap|甲", "}}"),
    "templates without text, inside each other": ("{{a|甲", "}}"),
    "parameters inside each other": ("{{{1|甲", "}}}"),
    "braces left open": ("{", ""),
    "links left open": ("[[甲|", ""),
    "links broken by lines": ("[[甲\n", ""),
    "links inside each other": ("[[甲|乙", "]]"),
    "files inside each other": ("[[File:a.jpg|甲", "]]"),
    "external links left open": ("[http://a b", ""),
    "tables left open": ("\n{| 甲", ""),
    "tables inside each other": ("\n{|\n甲", "\n|}"),
    "variants left open": ("-{A|zh-hans:甲;zh-hant:乙", ""),
    "variants inside each other": ("-{zh-hans:甲;zh-hant:", "}-"),
    "spaces after a semicolon": ("-{zh-hans:甲;      ", "}-"),
    "crossed brackets": ("{{a[[b-{c]]}}}-", ""),
    "opened together, closed crosswise": ("{{lang|en|[[甲|-{", "}}]]}-"),
    "round brackets": ("（", "）"),
    "brackets left open": ("（「((", ""),
    "empty brackets inside each other": ("（，", "）"),
    "full brackets inside each other": ("（甲", "）"),
    "marks of headings": ("=", ""),
    "spaces after marks of a heading": ("== ", ""),
    "reference headings": ("\n注释\n", ""),
    "marked reference headings": (f"\n=== 参见 ===\n{'正文' * 20}。", ""),
    "reference headings with references": ("\n参考文献\n《甲》1999\n\n", ""),
    "lines of categories": ("分类:甲\n\n", ""),
    "quotes": ("''", ""),
    "blank lines": ("\n \n", ""),
}  # fmt: skip


def page(kind: str, times: int) -> str:
    """Return a page with one kind of markup, `times` times, between two sentences."""
    first, second = KINDS[kind]
    return f"此页有正文。{first * times}{second * times}\n后文仍在。"


def clean(text: str) -> str:
    """Apply the rules of `clean`."""
    return remove_leftovers("page", text, "as_is", Removed())


WHAT: dict[str, Callable[[str], str]] = {"rules of clean": clean, "reader of dumps": plain_text}


def best_s(function: Callable[[str], str], text: str, repeats: int = 3) -> float:
    """Return the shortest processor time of a few runs, in seconds."""
    times_s = []
    for _ in range(repeats):
        start = time.process_time()
        function(text)
        times_s.append(time.process_time() - start)
    return min(times_s)


def rows_of(name: str, times_s: dict[str, dict[int, float]]) -> list[dict[str, Any]]:
    """The curve of one function, and its steepest kind."""
    rows = []
    for size in SIZES:
        total_s = sum(mine[size] for mine in times_s.values())
        rows.append(row(f"{name}, {len(KINDS)} pages of {size:,}", 1e3 * total_s, "ms"))
    small, large = 20_000, 80_000
    steepest = max(KINDS, key=lambda kind: times_s[kind][large] / times_s[kind][small])
    slow, fast = times_s[steepest][large], times_s[steepest][small]
    rows.append(
        row(
            f"{name}, the steepest page: {large:,} {steepest}",
            1e3 * slow,
            "ms",
            peer=f"{small:,}",
            peer_value=1e3 * fast,
            target=f"<= {MAX_RATIO}x",
            met=slow <= MAX_RATIO * fast,
        )
    )
    return rows


def main() -> None:
    """Time every kind of page, and write results/data_worst_case.json."""
    rows = []
    for name, function in WHAT.items():
        times_s = {
            kind: {size: best_s(function, page(kind, size)) for size in SIZES} for kind in KINDS
        }
        rows += rows_of(name, times_s)
    write("data_worst_case", rows)


if __name__ == "__main__":
    main()
