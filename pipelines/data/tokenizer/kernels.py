"""The compiled loops of the tokenizer (`pipelines/data/text/kernels.py` says when they are used).

Shape legend: D documents, I items (a token or a chunk), T tokens.
"""

import numpy as np

from pipelines.data.text.kernels import Array, Int, compiled, decode
from pipelines.data.tokenizer.code_points import CHUNK, SPACE

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)


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

    `slots` is an open-addressing table of entries (-1 is free); `spans` (entry, 2) has the
    start and size in `arena`; `used` counts entries and bytes of the arena.
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
    """Divide documents into items, as long as there is room for their chunks.

    An item is the id of a code point that stands alone, or -1 - entry of a chunk.

    Args:
        data: UTF-8 of all documents, uint8.
        offsets: (D + 1,) int64 into `data`.
        first: The document to start with.
        table: (0x110000,) uint16, see `pipelines.data.tokenizer.code_points`.
        slots: The chunk table, as for `look_up`.
        hashes: (capacity,) uint64.
        spans: (capacity, 2) int64.
        arena: Bytes of the chunks, uint8.
        used: (2,) int64, entries and bytes in use; changed.
        items: (I,) int32, written from the start.
        counts: (D,) int64, the items of each document, written.

    Returns:
        The first document that was not divided, and the number of items.
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
def count_code_points(data: Array, start: Int, stop: Int, counts: Array) -> None:
    """Add the code points of UTF-8 from byte `start` to `stop` to `counts`, (0x110000,) int64."""
    i = start
    while i < stop:
        point, i = decode(data, i)
        counts[point] += 1


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
        token_characters: int32, the code points behind each of them.
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
