"""Loops that NumPy cannot express, compiled by numba.

Import it only if numba is installed (`have_numba`). Each loop has a NumPy twin beside its
caller with the same result. The machine code is cached on disk.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])
Array = Any
# Inside compiled code an integer is a NumPy scalar; outside, Python's.
Int = Any


def compiled(function: F) -> F:
    """Compile a function at its first call, for the types of its arguments."""
    result: F = numba.njit(cache=True, nogil=True)(function)
    return result


@compiled
def decode(data: Array, i: Int) -> tuple[Int, Int]:
    """Read one code point of valid UTF-8; return it and the start of the next one."""
    lead = np.int64(data[i])
    if lead < 0x80:
        return lead, i + 1
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | np.int64(data[i + 1]) & 0x3F, i + 2
    middle = np.int64(data[i + 1]) & 0x3F
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | middle << 6 | np.int64(data[i + 2]) & 0x3F, i + 3
    tail = (np.int64(data[i + 2]) & 0x3F) << 6 | np.int64(data[i + 3]) & 0x3F
    return (lead & 0x07) << 18 | middle << 12 | tail, i + 4


@compiled
def mix(value: Any) -> Any:
    """Return splitmix64's finaliser of a uint64 (Steele, Lea and Flood, OOPSLA 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@compiled
def two_bits(key: Any) -> Any:
    """Return the two bits that a window sets in its word of a filter."""
    one, last = np.uint64(1), np.uint64(63)
    return (one << (key & last)) | (one << ((key >> np.uint64(6)) & last))


@compiled
def is_mark(characters: Int, han: Int, others: Int, limits: Any) -> Any:
    """Tell whether brackets are a mark by what they hold: all, Han, other letters and digits."""
    return characters <= limits[0] and han <= limits[1] and (han == 0 or others > 0)


@compiled
def fold(
    data: Array,
    offsets: Array,
    starts: Array,
    content: Array,
    bracket: Array,
    is_han: Array,
    limits: Any,
    folded: Array,
    ends: Array,
) -> None:
    """Write the comparison key of every text.

    A bracketed mark is written like other text, and taken back at its closing bracket.

    Args:
        data: UTF-8 of all texts, uint8.
        offsets: (D + 1,) int64 into `data`.
        starts: (K + 1,) int32, where the key of each code point starts in `content`.
        content: The keys of all code points, UTF-8.
        bracket: (K,) int8, 1 for an opening and -1 for a closing bracket.
        is_han: (K,) bool.
        limits: The most characters in a mark, and the most Han characters.
        folded: The keys, uint8, written; with room for the longest.
        ends: (D + 1,) int64, where the key of each text starts in `folded`; written.
    """
    last = len(is_han) - 1
    n = 0
    for document in range(len(offsets) - 1):
        i, stop = offsets[document], offsets[document + 1]
        # The opening bracket: where its key is, and the characters, Han, and other letters and
        # digits since then.
        opened, characters, han, others = -1, 0, 0, 0
        while i < stop:
            point, i = decode(data, i)
            point = min(point, last)
            if bracket[point] > 0:
                opened, characters, han, others = n, 0, 0, 0
            elif bracket[point] < 0:
                if opened >= 0 and is_mark(characters, han, others, limits):
                    n = opened
                opened = -1
            else:
                characters += 1
                han += is_han[point]
                others += not is_han[point] and starts[point + 1] > starts[point]
            for k in range(starts[point], starts[point + 1]):
                folded[n] = content[k]
                n += 1
        ends[document + 1] = n
