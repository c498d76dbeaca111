"""The compiled loops of `clean` (`pipelines/data/text/kernels.py` says when they are used).

Shape legend: D documents, H hashes.
"""

from typing import Any

import numpy as np

from pipelines.data.text.kernels import Array, Int, compiled, decode, mix


@compiled
def shingle(data: Array, start: Int, stop: Int, length: Int, points: Array, hashes: Array) -> Int:
    """Hash every run of `length` code points of one document into `hashes`.

    `points` is scratch. Both have room for one value per byte of the document, and for at
    least one. Returns S, the number of hashes; a document shorter than `length` is one shingle.
    """
    count = 0
    i = start
    while i < stop:
        points[count], i = decode(data, i)
        count += 1
    size = max(1, count - length + 1)
    hashes[:size] = 0
    # The shingles inside, so that the processor hashes several at once.
    for k in range(min(length, count)):
        for s in range(size):
            hashes[s] = mix(hashes[s] + np.uint64(points[s + k]))
    return size


@compiled
def upper(value: Any) -> Any:
    """Return the upper 32 bits of a uint64."""
    return np.uint32(value >> np.uint64(32))


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
        length: Code points per shingle.
        a_H: (H,) uint32, odd.
        b_H: (H,) uint32.
        signatures_DH: (D, H) uint32, written.
    """
    longest = 1
    for document in range(len(offsets) - 1):
        longest = max(longest, offsets[document + 1] - offsets[document])
    points = np.empty(longest, np.int64)
    hashes = np.empty(longest + 3, np.uint64)
    for document in range(len(offsets) - 1):
        size = shingle(data, offsets[document], offsets[document + 1], length, points, hashes)
        # Four shingles at a time, as reading and writing `lowest_H` for each takes longest. The
        # last four are filled up with the first one, which changes no minimum.
        hashes[size : size + 3] = hashes[0]
        lowest_H = signatures_DH[document]
        lowest_H[:] = np.uint32(0xFFFFFFFF)
        for s in range(0, size, 4):
            w, x = upper(hashes[s]), upper(hashes[s + 1])
            y, z = upper(hashes[s + 2]), upper(hashes[s + 3])
            for h in range(len(a_H)):
                a, b = a_H[h], b_H[h]
                first = min(np.uint32(a * w + b), np.uint32(a * x + b))
                last = min(np.uint32(a * y + b), np.uint32(a * z + b))
                lowest_H[h] = min(lowest_H[h], first, last)


@compiled
def shingle_all(data: Array, offsets: Array, length: Int, hashes: Array, starts: Array) -> None:
    """Write every document's shingles, in text order and with repeats.

    Args:
        data: UTF-8 of all documents, uint8.
        offsets: (D + 1,) int64 into `data`.
        length: Code points per shingle.
        hashes: uint64, as long as `data` and D together; written.
        starts: (D + 1,) int64, where the shingles of each document start; written.
    """
    longest = 1
    for document in range(len(offsets) - 1):
        longest = max(longest, offsets[document + 1] - offsets[document])
    points = np.empty(longest, np.int64)
    n = 0
    for document in range(len(offsets) - 1):
        starts[document] = n
        n += shingle(data, offsets[document], offsets[document + 1], length, points, hashes[n:])
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


@compiled
def count_kinds(data: Array, offsets: Array, kinds: Array, counts_DK: Array) -> None:
    """Count the characters of each kind in every document.

    Args:
        data: UTF-8 of all documents, uint8.
        offsets: (D + 1,) int64 into `data`.
        kinds: The kind of every code point, uint8.
        counts_DK: (D, K) int64; what is found is added.
    """
    for document in range(len(offsets) - 1):
        i = offsets[document]
        while i < offsets[document + 1]:
            point, i = decode(data, i)
            counts_DK[document, kinds[point]] += 1


@compiled
def mark_repeated(hashes: Array, shift: Any, seen: Array, repeated: Array) -> None:
    """Mark hashes that may occur repeatedly.

    Args:
        hashes: uint64.
        shift: What leaves the place of a hash in `seen`.
        seen: uint8, zeros, one per place; written.
        repeated: bool, as long as `hashes`; written. No hash that occurs once more is missed.
    """
    for key in hashes:
        seen[key >> shift] = min(seen[key >> shift] + 1, 2)
    for i in range(len(hashes)):
        repeated[i] = seen[hashes[i] >> shift] > 1
