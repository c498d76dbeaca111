"""The compiled loops of the recount, which compares tokens and not hashes.

Shape legend: N sequences, L length, W windows, C collected windows.
"""

from typing import Any

import numpy as np

from pipelines.data.text.kernels import Array, Int, compiled, mix, two_bits

# The bit of a slot that is not free, with or without an owner.
TAKEN = np.uint8(1 << 7)


@compiled
def window_words(tokens_L: Array, start: Int, window_tokens: Int) -> tuple[Any, Any]:
    """Pack the tokens of a window of up to 8 into two words."""
    low, high = np.uint64(0), np.uint64(0)
    if window_tokens == 8:
        # The common case, unrolled.
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
    """Return the slot of a window, or the free slot where it belongs; there are 2^k slots."""
    mask = np.int64(len(owners) - 1)
    slot = np.int64(key & np.uint64(mask))
    while owners[slot] and (words[slot, 0] != low or words[slot, 1] != high):
        slot = (slot + 1) & mask
    return slot


@compiled
def is_in_pass(key: Any, number: Int, passes: Int) -> Any:
    """Whether a window belongs to a pass; decided by other bits than its slot."""
    return (key & np.uint64(0xFFFFFFFF)) * np.uint64(passes) >> np.uint64(32) == np.uint64(number)


@compiled
def mark_windows(tokens_NL: Array, window_tokens: Int, bits: Array, shift: Any) -> None:
    """Set the bits of all windows in a filter.

    Args:
        tokens_NL: (N, L) uint16.
        window_tokens: Tokens per window, at most 8.
        bits: (2^k,) uint64, changed.
        shift: 64 - k.
    """
    for n in range(len(tokens_NL)):
        for w in range(tokens_NL.shape[1] - window_tokens + 1):
            low, high = window_words(tokens_NL[n], w, window_tokens)
            key = mix(low ^ mix(high))
            bits[key >> shift] |= two_bits(key)


@compiled
def collect_windows(
    tokens_NL: Array, first: Int, window_tokens: Int, bits: Array, shift: Any, found_C3: Array
) -> tuple[Int, Int]:
    """Collect the windows that pass the filter, sequence by sequence while there is room.

    Args:
        tokens_NL: (N, L) uint16.
        first: The sequence to start with.
        window_tokens: Tokens per window, at most 8.
        bits: (2^k,) uint64, of `mark_windows`.
        shift: 64 - k.
        found_C3: (C, 3) uint64, written: the two words of a window, and the sequence;
            room for at least the windows of one sequence.

    Returns:
        The sequence to continue with, and the number of windows collected.
    """
    num_windows = tokens_NL.shape[1] - window_tokens + 1
    found = 0
    for n in range(first, len(tokens_NL)):
        if found + num_windows > len(found_C3):
            return n, found
        last = found + num_windows
        for w in range(num_windows):
            low, high = window_words(tokens_NL[n], w, window_tokens)
            found_C3[found + w, 0] = low
            found_C3[found + w, 1] = high
            found_C3[found + w, 2] = mix(low ^ mix(high))
        for w in range(found, last):
            low, high, key = found_C3[w]
            mine = two_bits(key)
            found_C3[found, 0] = low
            found_C3[found, 1] = high
            found_C3[found, 2] = n
            found += bits[key >> shift] & mine == mine
    return len(tokens_NL), found


@compiled
def add_windows(
    found_C3: Array, number: Int, passes: Int, words: Array, owners: Array, bits: Array, shift: Any
) -> None:
    """Put the collected windows of a pass into an open-addressing table, without owners.

    Args:
        found_C3: (C, 3) uint64, of `collect_windows`.
        number: Which pass this is.
        passes: How many there are.
        words: (2^k, 2) uint64, changed; more slots than windows.
        owners: (2^k,) uint8, changed; 0 for a free slot.
        bits: (2^j,) uint64, changed: a small filter of the windows in the table.
        shift: 64 - j.
    """
    for c in range(len(found_C3)):
        low, high, _ = found_C3[c]
        key = mix(low ^ mix(high))
        if is_in_pass(key, number, passes):
            bits[key >> shift] |= two_bits(key)
            slot = find_window(low, high, key, words, owners)
            words[slot, 0] = low
            words[slot, 1] = high
            owners[slot] = TAKEN


@compiled
def own_windows(
    tokens_NL: Array,
    window_tokens: Int,
    owner: Int,
    number: Int,
    passes: Int,
    words: Array,
    owners: Array,
    bits: Array,
    shift: Any,
) -> None:
    """Record which windows of a table occur in some sequences.

    Args:
        tokens_NL: (N, L) uint16.
        window_tokens: Tokens per window, at most 8.
        owner: The bit of these sequences; below `TAKEN`.
        number: Which pass this is.
        passes: How many there are.
        words: (2^k, 2) uint64, of `add_windows`.
        owners: (2^k,) uint8, changed.
        bits: (2^j,) uint64, of `add_windows`.
        shift: 64 - j.
    """
    for n in range(len(tokens_NL)):
        tokens_L = tokens_NL[n]
        for w in range(len(tokens_L) - window_tokens + 1):
            low, high = window_words(tokens_L, w, window_tokens)
            key = mix(low ^ mix(high))
            mine = two_bits(key)
            if bits[key >> shift] & mine == mine and is_in_pass(key, number, passes):
                slot = find_window(low, high, key, words, owners)
                if owners[slot]:
                    owners[slot] |= np.uint8(owner)


@compiled
def count_windows(
    found_C3: Array, number: Int, passes: Int, words: Array, owners: Array, counts_KN: Array
) -> None:
    """Count, for every sequence, the collected windows that each owner has.

    Args:
        found_C3: (C, 3) uint64, of `collect_windows`.
        number: Which pass this is.
        passes: How many there are.
        words: (2^k, 2) uint64, of `add_windows`.
        owners: (2^k,) uint8, of `own_windows`.
        counts_KN: (K, N) int64, added to.
    """
    for c in range(len(found_C3)):
        low, high, n = found_C3[c]
        key = mix(low ^ mix(high))
        if is_in_pass(key, number, passes):
            found = owners[find_window(low, high, key, words, owners)]
            for k in range(len(counts_KN)):
                counts_KN[k, n] += (found >> k) & 1
