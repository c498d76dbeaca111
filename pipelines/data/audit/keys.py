"""The comparison key of a text as the judge computes it.

`pipelines/data/text/folding.py` states the rules, and computes the same key for the filter, by
NumPy on code points. This is the second opinion: strings, a regular expression and
`str.translate`. The two share the ranges of Han characters, and no code.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from pipelines.data.text.scripts import HAN

MARK_CHARACTERS = 64
MARK_HAN = 4
OPENING = "([{（［｛【〔〖〘〚⟨⟮⦅｟⁽₍❨❲❴﹙﹛﹝︵︷︹︻﹇︗"
CLOSING = ")]}）］｝】〕〗〙〛⟩⟯⦆｠⁾₎❩❳❵﹚﹜﹞︶︸︺︼﹈︘"
BRACKETS = re.escape(OPENING + CLOSING)
# Brackets without another bracket between them; the length is bounded, so the search is linear.
MARK = re.compile(
    f"[{re.escape(OPENING)}][^{BRACKETS}]{{0,{MARK_CHARACTERS}}}[{re.escape(CLOSING)}]"
)
HAN_CHARACTER = re.compile("[" + "".join(f"{chr(a)}-{chr(b - 1)}" for a, b in HAN) + "]")
# In this order, each on the result of the last one.
VARIANTS = ("t2s", "hk2s", "tw2s")


def fold_pieces(pieces: Iterable[str]) -> list[str]:
    """Compute the key of a text that is given in pieces.

    Args:
        pieces: The text; a bracketed mark may begin in one piece and end in another.

    Returns:
        What each piece contributes to the key; joined, they are the key.
    """
    texts = list(pieces)
    # A mark becomes white space of its length, which has no key: the places of pieces stay.
    text = MARK.sub(_blank, "".join(texts))
    ends = accumulate(map(len, texts), initial=0)
    return [text[start:stop].translate(_KEYS) for start, stop in pairwise(ends)]


def title_key(title: str) -> str:
    """Compute the key of a title, in which brackets tell two subjects apart."""
    return title.translate(_KEYS)


def _blank(mark: re.Match[str]) -> str:
    text = mark.group()
    han = HAN_CHARACTER.findall(text)
    # Brackets around nothing but Han are text in brackets.
    if len(han) > MARK_HAN or (han and not HAN_CHARACTER.sub("", text).translate(_KEYS)):
        return text
    return " " * len(text)


class _Keys(dict[int, str]):
    """The key of each code point, computed when it is first met."""

    def __missing__(self, point: int) -> str:
        character = chr(point)
        form = ""
        if not unicodedata.category(character).startswith("C"):
            folded = unicodedata.normalize("NFKC", character).casefold()
            # Case folding takes some characters apart.
            form = unicodedata.normalize("NFKC", folded)
        kept = [part for part in form if unicodedata.category(part)[0] in "LN"]
        key = self[point] = "".join(map(_simplified, kept))
        return key


_KEYS = _Keys()


def _simplified(character: str) -> str:
    for converter in _converters():
        character = converter.convert(character)
    return character


@lru_cache
def _converters() -> list[Any]:
    import opencc

    return [opencc.OpenCC(variant) for variant in VARIANTS]
