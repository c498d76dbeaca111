"""Windows of tokens in compiled loops: by hash for the filter, by the tokens for the judge.

Like `pipelines/kernels.py`, only imported where numba is installed.

Shape legend: N sequences, L length.
"""

from typing import Any

import numpy as np

from pipelines.kernels import Array, Int, compiled, mix


@compiled
def known_windows(
    tokens_NL: Array,
    window_tokens: Int,
    multiplier: Any,
    hashes: Array,
    is_used: Array,
    shift: Any,
    part: Any,
    parts: Any,
    counts_N: Array,
) -> None:
    """Add up the windows of every sequence that occur in one part of a reference.

    Args:
        tokens_NL: (N, L) uint16.
        window_tokens: Tokens a window; at most L.
        multiplier: Of `pipelines.overlap.window_hashes`, whose hashes these are.
        hashes: The reference's hashes, uint64, sorted.
        is_used: (2^k,) bool, whether a hash of the reference begins with these k bits.
        shift: 64 - k.
        part: Which part these hashes are.
        parts: How many parts there are, as `pipelines.overlap.part_of` tells them apart.
        counts_N: (N,) int64, added to.
    """
    num_windows = tokens_NL.shape[1] - window_tokens + 1
    for n in range(len(tokens_NL)):
        known = 0
        for w in range(num_windows):
            key = np.uint64(0)
            for k in range(window_tokens):
                key = (key + np.uint64(tokens_NL[n, w + k])) * multiplier
                key = key ^ (key >> np.uint64(29))
            mine = (key & np.uint64(0xFFFFFFFF)) * parts >> np.uint64(32) == part
            if mine and is_used[key >> shift]:
                low, high = 0, len(hashes)
                while low < high:
                    middle = (low + high) // 2
                    if hashes[middle] < key:
                        low = middle + 1
                    else:
                        high = middle
                known += low < len(hashes) and hashes[low] == key
        counts_N[n] += known


@compiled
def window_words(tokens_L: Array, start: Int, window_tokens: Int) -> tuple[Any, Any]:
    """Pack the tokens of a window of up to 8 into two words: the tokens, not a hash of them."""
    low, high = np.uint64(0), np.uint64(0)
    if window_tokens == 8:
        # The usual case, without a loop.
        for k in range(4):
            low = (low << np.uint64(16)) | np.uint64(tokens_L[start + k])
            high = (high << np.uint64(16)) | np.uint64(tokens_L[start + 4 + k])
        return low, high
    for k in range(min(window_tokens, 4)):
        low = (low << np.uint64(16)) | np.uint64(tokens_L[start + k])
    for k in range(4, window_tokens):
        high = (high << np.uint64(16)) | np.uint64(tokens_L[start + k])
    return low, high


@compiled
def find_window(low: Any, high: Any, key: Any, words: Array, owners: Array) -> Int:
    """Return the slot of a window, or the free slot where it would be; they are 2^k."""
    mask = np.int64(len(owners) - 1)
    slot = np.int64(key & np.uint64(mask))
    while owners[slot] and (words[slot, 0] != low or words[slot, 1] != high):
        slot = (slot + 1) & mask
    return slot


@compiled
def is_in_part(key: Any, part: Int, parts: Int) -> Any:
    """Whether a window is one of those that are looked at now; by bits that no slot is told by."""
    return (key & np.uint64(0xFFFFFFFF)) * np.uint64(parts) >> np.uint64(32) == np.uint64(part)


@compiled
def add_windows(
    tokens_NL: Array,
    window_tokens: Int,
    owner: Int,
    part: Int,
    parts: Int,
    words: Array,
    owners: Array,
    bits: Array,
) -> None:
    """Put the windows of a part into an open-addressing table.

    Args:
        tokens_NL: (N, L) uint16.
        window_tokens: Tokens a window, at most 8.
        owner: The bit that says whose they are.
        part: Which part is looked at.
        parts: How many there are.
        words: (2^k, 2) uint64, changed; more slots than windows.
        owners: (2^k,) uint8, changed; 0 for a free slot.
        bits: (2^18,) uint64, changed: a bit of 2^24 for every window, which rules out
            nearly all others at one look.
    """
    for n in range(len(tokens_NL)):
        tokens_L = tokens_NL[n]
        for w in range(len(tokens_L) - window_tokens + 1):
            low, high = window_words(tokens_L, w, window_tokens)
            key = mix(low ^ mix(high))
            if is_in_part(key, part, parts):
                bit = key >> np.uint64(40)
                bits[bit >> np.uint64(6)] |= np.uint64(1) << (bit & np.uint64(63))
                slot = find_window(low, high, key, words, owners)
                words[slot, 0] = low
                words[slot, 1] = high
                owners[slot] |= np.uint8(owner)


@compiled
def count_windows(
    tokens_NL: Array,
    window_tokens: Int,
    part: Int,
    parts: Int,
    words: Array,
    owners: Array,
    bits: Array,
    counts_KN: Array,
) -> None:
    """Add up the windows of every sequence that each owner has in a table of `add_windows`.

    Args:
        tokens_NL: (N, L) uint16.
        window_tokens: Tokens a window, at most 8.
        part: Which part is looked at.
        parts: How many there are.
        words: (2^k, 2) uint64.
        owners: (2^k,) uint8.
        bits: (2^18,) uint64.
        counts_KN: (K, N) int64, added to.
    """
    for n in range(len(tokens_NL)):
        tokens_L = tokens_NL[n]
        for w in range(len(tokens_L) - window_tokens + 1):
            low, high = window_words(tokens_L, w, window_tokens)
            key = mix(low ^ mix(high))
            bit = key >> np.uint64(40)
            if is_in_part(key, part, parts) and bits[bit >> np.uint64(6)] >> (
                bit & np.uint64(63)
            ) & np.uint64(1):
                found = owners[find_window(low, high, key, words, owners)]
                for k in range(len(counts_KN)):
                    counts_KN[k, n] += (found >> k) & 1
