"""Loops that NumPy cannot express, compiled by numba.

Only imported where numba is installed (`have_numba`); each has a NumPy twin beside
its caller that gives the same result. The machine code is cached on disk.

Shape legend: D documents, I items (a token or a chunk), T tokens.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from pipelines.code_points import CHUNK, SPACE

F = TypeVar("F", bound=Callable[..., Any])
Array = Any
# Inside compiled code an integer is a NumPy scalar; outside, Python's.
Int = Any

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)


def compiled(function: F) -> F:
    """Compile a function at its first call for the types that it is given."""
    result: F = numba.njit(cache=True, nogil=True)(function)
    return result


@compiled
def decode(data: Array, i: Int) -> tuple[Int, Int]:
    """Read one code point of valid UTF-8; return it and where the next one begins."""
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
def same(data: Array, start: Int, arena: Array, at: Int, size: Int) -> bool:
    """Whether two runs of bytes are equal."""
    for k in range(size):  # noqa: SIM110 - numba has no generators here
        if data[start + k] != arena[at + k]:
            return False
    return True


@compiled
def look_up(
    data: Array,
    start: Int,
    stop: Int,
    slots: Array,
    hashes: Array,
    spans: Array,
    arena: Array,
    used: Array,
) -> Int:
    """Return the entry of a chunk, after adding it if it is new.

    `slots` is an open-addressing table of entries (-1 is free); `spans` (entry, 2) are
    places in `arena`; `used` counts entries and bytes of the arena.
    """
    key = FNV_OFFSET
    for k in range(start, stop):
        key = (key ^ np.uint64(data[k])) * FNV_PRIME
    mask = len(slots) - 1
    slot = np.int64((key ^ (key >> np.uint64(32))) & np.uint64(mask))
    size = stop - start
    while slots[slot] >= 0:
        entry = slots[slot]
        if (
            hashes[entry] == key
            and spans[entry, 1] == size
            and same(data, start, arena, spans[entry, 0], size)
        ):
            return np.int64(entry)
        slot = (slot + 1) & mask
    entry = used[0]
    slots[slot] = entry
    hashes[entry] = key
    spans[entry, 0] = used[1]
    spans[entry, 1] = size
    arena[used[1] : used[1] + size] = data[start:stop]
    used[0] += 1
    used[1] += size
    return np.int64(entry)


@compiled
def segment(
    data: Array,
    offsets: Array,
    first: Int,
    table: Array,
    slots: Array,
    hashes: Array,
    spans: Array,
    arena: Array,
    used: Array,
    items: Array,
    counts: Array,
) -> tuple[Int, Int]:
    """Cut documents into items, as far as there is room for their chunks.

    An item is the id of a code point that stands alone, or -1 - entry of a chunk.

    Args:
        data: UTF-8 of all documents, uint8.
        offsets: (D + 1,) int64 into `data`.
        first: The document to begin with.
        table: (0x110000,) uint16, see `pipelines.code_points`.
        slots: The chunk table, as for `look_up`.
        hashes: (capacity,) uint64.
        spans: (capacity, 2) int64.
        arena: Bytes of the chunks, uint8.
        used: (2,) int64, entries and bytes in use; changed.
        items: (I,) int32, written from the start.
        counts: (D,) int64, the items of each document, written.

    Returns:
        The first document that was not cut, and the number of items.
    """
    n = 0
    for document in range(first, len(offsets) - 1):
        i, stop = offsets[document], offsets[document + 1]
        size = stop - i
        if used[0] + size // 2 + 1 > len(hashes) or used[1] + size > len(arena):
            return document, n
        before = n
        chunk = np.int64(-1)
        while i < stop:
            point, after = decode(data, i)
            kind = table[point]
            if kind == CHUNK:
                if chunk < 0:
                    chunk = i
            else:
                if chunk >= 0:
                    items[n] = -1 - look_up(data, chunk, i, slots, hashes, spans, arena, used)
                    n += 1
                    chunk = np.int64(-1)
                if kind != SPACE:
                    items[n] = kind
                    n += 1
            i = after
        if chunk >= 0:
            items[n] = -1 - look_up(data, chunk, stop, slots, hashes, spans, arena, used)
            n += 1
        counts[document] = n - before
    return len(offsets) - 1, n


@compiled
def expand(
    items: Array,
    counts: Array,
    token_spans: Array,
    token_ids: Array,
    token_characters: Array,
    end: Int,
    ids: Array,
    characters: Array,
    lengths: Array,
) -> Int:
    """Write the tokens of items.

    Args:
        items: (I,) int32, from `segment`.
        counts: (D,) int64, items of each document.
        token_spans: (entry, 2) int64, start and number of a chunk's tokens.
        token_ids: uint16, the tokens of all chunks.
        token_characters: int32, the code points that each of them stands for.
        end: The id that ends a document, or -1 for none.
        ids: uint16, written.
        characters: int32, written.
        lengths: (D,) int64, tokens of each document, written.

    Returns:
        T, the number of tokens.
    """
    n = 0
    item = 0
    for document in range(len(counts)):
        before = n
        for _ in range(counts[document]):
            value = items[item]
            item += 1
            if value >= 0:
                ids[n] = value
                characters[n] = 1
                n += 1
            else:
                entry = -1 - value
                at = token_spans[entry, 0]
                for k in range(token_spans[entry, 1]):
                    ids[n] = token_ids[at + k]
                    characters[n] = token_characters[at + k]
                    n += 1
        if end >= 0:
            ids[n] = end
            characters[n] = 0
            n += 1
        lengths[document] = n - before
    return n


@compiled
def mix(value: Any) -> Any:
    """Return splitmix64's finaliser of a uint64 (Steele, Lea and Flood, OOPSLA 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@compiled
def shingle(data: Array, start: Int, stop: Int, length: Int, points: Array, hashes: Array) -> Int:
    """Hash every run of `length` code points of one document into `hashes`.

    `points` is scratch. Both hold a value a byte of the document, and one at least. Returns
    S, the number of hashes; a document shorter than `length` is one shingle.
    """
    count = 0
    i = start
    while i < stop:
        points[count], i = decode(data, i)
        count += 1
    size = max(1, count - length + 1)
    for s in range(size):
        value = np.uint64(0)
        for k in range(min(length, count)):
            value = mix(value + np.uint64(points[s + k]))
        hashes[s] = value
    return size


@compiled
def minhash(
    data: Array,
    offsets: Array,
    length: Int,
    a_H: Array,
    b_H: Array,
    signatures_DH: Array,
) -> None:
    """Write the MinHash signature of every document.

    Args:
        data: UTF-8 of all documents, uint8.
        offsets: (D + 1,) int64 into `data`.
        length: Code points a shingle.
        a_H: (H,) uint32, odd.
        b_H: (H,) uint32.
        signatures_DH: (D, H) uint32, written.
    """
    longest = 1
    for document in range(len(offsets) - 1):
        longest = max(longest, offsets[document + 1] - offsets[document])
    points = np.empty(longest, np.int64)
    hashes = np.empty(longest, np.uint64)
    for document in range(len(offsets) - 1):
        size = shingle(data, offsets[document], offsets[document + 1], length, points, hashes)
        lowest_H = signatures_DH[document]
        lowest_H[:] = np.uint32(0xFFFFFFFF)
        for s in range(size):
            value = np.uint32(hashes[s] >> np.uint64(32))
            for h in range(len(a_H)):
                permuted = np.uint32(a_H[h] * value + b_H[h])
                lowest_H[h] = min(lowest_H[h], permuted)


@compiled
def shingle_sets(data: Array, offsets: Array, length: Int, sets: Array, starts: Array) -> None:
    """Write every document's shingles, sorted and without repeats.

    Args:
        data: UTF-8 of all documents, uint8.
        offsets: (D + 1,) int64 into `data`.
        length: Code points a shingle.
        sets: uint64, as long as `data` and D together; written.
        starts: (D + 1,) int64, where each set begins; written.
    """
    longest = 1
    for document in range(len(offsets) - 1):
        longest = max(longest, offsets[document + 1] - offsets[document])
    points = np.empty(longest, np.int64)
    hashes = np.empty(longest, np.uint64)
    n = 0
    for document in range(len(offsets) - 1):
        size = shingle(data, offsets[document], offsets[document + 1], length, points, hashes)
        ordered = np.sort(hashes[:size])
        starts[document] = n
        for s in range(size):
            if s == 0 or ordered[s] != ordered[s - 1]:
                sets[n] = ordered[s]
                n += 1
    starts[len(offsets) - 1] = n


@compiled
def jaccards(sets: Array, starts: Array, pairs: Array, similarities: Array) -> None:
    """Write the Jaccard similarity of pairs of sets from `shingle_sets`; `pairs` is (P, 2)."""
    for p in range(len(pairs)):
        i, i_stop = starts[pairs[p, 0]], starts[pairs[p, 0] + 1]
        j, j_stop = starts[pairs[p, 1]], starts[pairs[p, 1] + 1]
        union = (i_stop - i) + (j_stop - j)
        both = 0
        while i < i_stop and j < j_stop:
            left, right = sets[i], sets[j]
            both += left == right
            i += left <= right
            j += right <= left
        similarities[p] = both / (union - both)
