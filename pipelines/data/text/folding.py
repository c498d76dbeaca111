"""The comparison key of a text: what stays the same in every copy of it.

Duplicates, near duplicates, shared windows and titles are compared by this key, so a copy in
traditional characters, with other punctuation, white space, width or case, or with footnote
marks, is still a copy. The text that is trained on is not changed.

The rules of version `FOLDING`:

1. a bracketed mark goes with its brackets: a pair of brackets of any form, but not of the marks
   of titles and quotations (`《》〈〉「」`), without another bracket inside, of at most
   `MARK_CHARACTERS` characters, at most `MARK_HAN` of them Han, unless Han are all the letters and
   digits that it holds (`[12]`, `（英語：Beijing）`, `〖とうきょう〗`, but not `（今北京）`);
2. every character takes its NFKC form, case-folded, and its simplified form (OpenCC, standard,
   Hong Kong and Taiwan variants, character by character, so that the key of a character never
   depends on its neighbours);
3. of the result only letters and digits stay: no punctuation, symbol, accent or white space.

Shape legend: D texts, C characters of all texts, F folded characters of all texts.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import opencc
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.text.arrays import text_array, utf8_views
from pipelines.data.text.compiled import have_numba
from pipelines.data.text.scripts import HAN

# Change it with the rules.
FOLDING = 3
MARK_CHARACTERS = 64
MARK_HAN = 4
OPENING = "([{（［｛【〔〖〘〚⟨⟮⦅｟⁽₍❨❲❴﹙﹛﹝︵︷︹︻﹇︗"
CLOSING = ")]}）］｝】〕〗〙〛⟩⟯⦆｠⁾₎❩❳❵﹚﹜﹞︶︸︺︼﹈︘"
# Unassigned, tags and private use above: they have no key.
TABLE_SIZE = HAN[-1][1] + 1
UTF32 = "utf-32-le"
# A shorter key says too little: the marks are kept, or the text itself is the key.
MIN_KEY_CHARACTERS = 16
# About as much text is folded at a time, so that memory does not grow with it.
BYTES_PER_BLOCK = 1 << 20
TITLES_PER_BLOCK = 4096
# In this order, each on the result of the last one.
VARIANTS = ("t2s", "hk2s", "tw2s")

Points = npt.NDArray[np.uint32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Folded:
    """The keys of D texts, one after another.

    Args:
        points_F: (F,) uint32 code points.
        sources_F: (F,) int64, the character of the input that each comes from.
        offsets: (D + 1,) int64, where the key of each text starts.
    """

    points_F: Points
    sources_F: Integers
    offsets: Integers


@dataclass(frozen=True)
class _Table:
    """What rules 2 and 3 make of each code point, and the bits that rule 1 needs."""

    starts: npt.NDArray[np.int32]
    points: Points
    bracket: npt.NDArray[np.int8]
    is_han: npt.NDArray[np.bool_]
    utf8_starts: npt.NDArray[np.int32]
    utf8: npt.NDArray[np.uint8]


def fold(text: str) -> str:
    """Compute the comparison key of one text; folding twice changes nothing."""
    return _string(fold_points(_points(text), np.array([0, len(text)])).points_F)


def title_key(title: str) -> str:
    """Compute the comparison key of a title, in which brackets tell two subjects apart."""
    return _string(_map(_points(title))[0])


def title_keys(titles: Sequence[str]) -> list[str]:
    """Compute the keys of many titles, some at a time."""
    keys = []
    for start in range(0, len(titles), TITLES_PER_BLOCK):
        block = titles[start : start + TITLES_PER_BLOCK]
        points, sources = _map(_points("".join(block)))
        ends = np.cumsum([0, *map(len, block)])
        text, bounds = _string(points), np.searchsorted(sources, ends).tolist()
        keys += [text[first:last] for first, last in pairwise(bounds)]
    return keys


def document_keys(texts: pa.Array) -> pa.Array:
    """Compute the comparison keys of D documents, none of which is empty.

    A text of marks and little else (`（甲）（乙）`) has hardly a key, and would equal every
    other such text: its marks count then, and if it has no letter at all, it is its own key.

    Args:
        texts: D strings.

    Returns:
        D large strings.
    """
    keys = fold_array(texts)
    short = pc.less(pc.utf8_length(keys), MIN_KEY_CHARACTERS)
    if not pc.any(short).as_py():
        return keys
    whole = [title_key(text) or text for text in texts.filter(short).to_pylist()]
    return pc.replace_with_mask(keys, short, pa.array(whole, pa.large_string()))


def fold_array(texts: pa.Array, *, use_numba: bool | None = None) -> pa.Array:
    """Compute the comparison keys of D texts.

    Args:
        texts: D strings.
        use_numba: Whether to compile the loop; by default if numba is installed.

    Returns:
        D large strings.
    """
    array = text_array(texts)
    _, bounds = utf8_views(array)
    blocks = np.flatnonzero(np.diff(bounds[:-1] // BYTES_PER_BLOCK)) + 1
    fold_block = _fold_compiled if have_numba(use_numba) else _fold_block
    edges = [0, *blocks.tolist(), len(array)]
    return pa.concat_arrays([fold_block(array[i:j]) for i, j in pairwise(edges)])


def _fold_block(array: pa.Array) -> pa.Array:
    data, bounds = utf8_views(array)
    data = data[bounds[0] : bounds[-1]]
    points_C = _points(data.tobytes().decode())
    # Characters before each byte: every byte but those that continue a character starts one.
    starts = np.append(0, np.cumsum((data & 0xC0) != 0x80))
    folded = fold_points(points_C, starts[bounds - bounds[0]])
    ends = np.append(0, np.cumsum(_utf8_sizes(folded.points_F)))[folded.offsets]
    return _large_strings(ends, _string(folded.points_F).encode())


def _fold_compiled(array: pa.Array) -> pa.Array:
    from pipelines.data.text import kernels

    table = _table()
    data, bounds = utf8_views(array)
    # Only the part that is written takes memory.
    folded = np.empty(int(bounds[-1] - bounds[0]) * int(np.diff(table.utf8_starts).max()), np.uint8)
    ends = np.zeros(len(bounds), np.int64)
    kernels.fold(
        data, bounds, table.utf8_starts, table.utf8, table.bracket, table.is_han,
        (MARK_CHARACTERS, MARK_HAN), folded, ends,
    )  # fmt: skip
    return _large_strings(ends, folded[: ends[-1]].tobytes())


def _large_strings(ends: Integers, content: bytes) -> pa.Array:
    return pa.LargeStringArray.from_buffers(
        len(ends) - 1, pa.py_buffer(ends.astype(np.int64)), pa.py_buffer(content)
    )


def _utf8_sizes(points: Points) -> Integers:
    return np.searchsorted(np.array([0x80, 0x800, 0x10000]), points, "right") + 1


def fold_points(points_C: Points, offsets: Integers) -> Folded:
    """Compute the comparison keys of texts given as code points.

    Args:
        points_C: (C,) uint32, the texts one after another.
        offsets: (D + 1,) int64, where each text starts.

    Returns:
        The keys.
    """
    kept = np.flatnonzero(~_marks(points_C, offsets))
    points_F, sources = _map(points_C[kept])
    sources_F = kept[sources]
    return Folded(points_F, sources_F, np.searchsorted(sources_F, offsets))


def _marks(points_C: Points, offsets: Integers) -> npt.NDArray[np.bool_]:
    """Find the characters of bracketed marks (rule 1)."""
    table = _table()
    known_C = np.minimum(points_C, TABLE_SIZE - 1)
    bracket_C = table.bracket[known_C]
    at = np.flatnonzero(bracket_C)
    pairs = np.flatnonzero((bracket_C[at[:-1]] > 0) & (bracket_C[at[1:]] < 0))
    first, last = at[pairs], at[pairs + 1]
    is_han_C = table.is_han[known_C]
    has_key_C = table.starts[known_C + 1] > table.starts[known_C]
    han, others = (np.append(0, np.cumsum(x)) for x in (is_han_C, has_key_C & ~is_han_C))
    text_of = np.searchsorted(offsets, np.stack([first, last]), "right")
    is_mark = (
        (last - first - 1 <= MARK_CHARACTERS)
        & (han[last] - han[first] <= MARK_HAN)
        & ((han[last] == han[first]) | (others[last] > others[first]))
        & (text_of[0] == text_of[1])
    )
    depth = np.zeros(len(points_C) + 1, np.int8)
    depth[first[is_mark]] += 1
    depth[last[is_mark] + 1] -= 1
    return np.cumsum(depth[:-1], dtype=np.int8) > 0


def _map(points_C: Points) -> tuple[Points, Integers]:
    """Apply rules 2 and 3; also return the index of the source of each result."""
    table = _table()
    known_C = np.minimum(points_C, TABLE_SIZE - 1)
    starts_C = table.starts[known_C]
    sizes_C = table.starts[known_C + 1] - starts_C
    sources_F = np.repeat(np.arange(len(points_C)), sizes_C)
    nth_F = np.arange(len(sources_F)) - (np.cumsum(sizes_C) - sizes_C)[sources_F]
    return table.points[starts_C[sources_F] + nth_F], sources_F


@lru_cache
def _table() -> _Table:
    # A newline is dropped by rule 3, and separates characters for OpenCC, which knows phrases.
    forms = [
        "\n" if unicodedata.category(chr(point))[0] == "C" else _compatible(chr(point))
        for point in range(TABLE_SIZE - 1)
    ]
    # The last entry stands for all the code points above.
    forms.append("\n")
    characters = sorted({character for form in forms for character in form} - {"\n"})
    keys = "\n".join(characters)
    for variant in VARIANTS:
        keys = opencc.OpenCC(variant).convert(keys)
    key_of = {
        character: key if unicodedata.category(character)[0] in "LN" else ""
        for character, key in zip(characters, keys.split("\n"), strict=True)
    }
    folded = ["".join(key_of.get(character, "") for character in form) for form in forms]
    starts = np.zeros(TABLE_SIZE + 1, np.int32)
    np.cumsum([len(form) for form in folded], out=starts[1:])
    bracket = np.zeros(TABLE_SIZE, np.int8)
    bracket[_points(OPENING)] = 1
    bracket[_points(CLOSING)] = -1
    is_han = np.zeros(TABLE_SIZE, np.bool_)
    for start, stop in HAN:
        is_han[start:stop] = True
    points = _points("".join(folded))
    utf8_starts = np.append(0, np.cumsum(_utf8_sizes(points)))[starts].astype(np.int32)
    utf8 = np.frombuffer("".join(folded).encode(), np.uint8)
    return _Table(starts, points, bracket, is_han, utf8_starts, utf8)


def _compatible(character: str) -> str:
    """NFKC with case folding; the second pass composes what folding took apart."""
    folded = unicodedata.normalize("NFKC", character).casefold()
    return unicodedata.normalize("NFKC", folded)


def _points(text: str) -> Points:
    return np.frombuffer(text.encode(UTF32), dtype="<u4")


def _string(points: Points) -> str:
    return points.astype("<u4").tobytes().decode(UTF32)
