"""Windows of tokens in compiled loops: by hash for the filter, by the tokens for the judge.

Like `pipelines/kernels.py`, only imported where numba is installed.

Shape legend: N sequences, L length.
"""

from typing import Any

import numpy as np

from pipelines.kernels import Array, Int, compiled, mix

# The bit of a slot that is not free, whoever has its window.
TAKEN = np.uint8(1 << 7)


@compiled
def hash_sequence(tokens_L: Array, window_tokens: Int, multiplier: Any, hashes_W: Array) -> None:
    """Hash the windows of a sequence as `pipelines.window_index.window_hashes` does."""
    for w in range(len(hashes_W)):
        key = np.uint64(0)
        for k in range(window_tokens):
            key = (key + np.uint64(tokens_L[w + k])) * multiplier
            key = key ^ (key >> np.uint64(29))
        hashes_W[w] = key


@compiled
def hash_windows(tokens_NL: Array, window_tokens: Int, multiplier: Any, hashes_NW: Array) -> None:
    """Hash the windows of all sequences.

    Args:
        tokens_NL: (N, L) uint16.
        window_tokens: Tokens a window; at most L.
        multiplier: Of `pipelines.window_index.window_hashes`.
        hashes_NW: (N, W) uint64, written.
    """
    for n in range(len(tokens_NL)):
        hash_sequence(tokens_NL[n], window_tokens, multiplier, hashes_NW[n])


@compiled
def mark_hashes(hashes: Array, words: Array, shift: Any) -> None:
    """Set the bits of hashes in a filter of 2^k words; `shift` is 64 - k."""
    for key in hashes:
        words[key >> shift] |= two_bits(key)


@compiled
def candidates(
    tokens_NL: Array,
    first: Int,
    window_tokens: Int,
    multiplier: Any,
    words: Array,
    shift: Any,
    hashes_C: Array,
    rows_C: Array,
) -> tuple[Int, Int]:
    """Collect the windows that a filter lets through, sequence by sequence while there is room.

    Args:
        tokens_NL: (N, L) uint16.
        first: The sequence to begin with.
        window_tokens: Tokens a window; at most L.
        multiplier: Of `pipelines.window_index.window_hashes`, whose hashes these are.
        words: (2^k,) uint64, the filter; its bits are those of `window_index.bits_of`.
        shift: 64 - k.
        hashes_C: (C,) uint64, written; room for a sequence's windows at least.
        rows_C: (C,) int32, written.

    Returns:
        The sequence to go on with, and how many windows were collected.
    """
    num_windows = tokens_NL.shape[1] - window_tokens + 1
    found = 0
    for n in range(first, len(tokens_NL)):
        if found + num_windows > len(hashes_C):
            return n, found
        last = found + num_windows
        hash_sequence(tokens_NL[n], window_tokens, multiplier, hashes_C[found:last])
        # Hashed before, so that nothing but looks at the filter is under way here; and written
        # in any case and counted if it is one: no branch to guess wrong.
        for w in range(found, last):
            key = hashes_C[w]
            bits = two_bits(key)
            hashes_C[found] = key
            rows_C[found] = n
            found += words[key >> shift] & bits == bits
    return len(tokens_NL), found


@compiled
def two_bits(key: Any) -> Any:
    """Return the bits of a window in its word of a filter."""
    one, last = np.uint64(1), np.uint64(63)
    return (one << (key & last)) | (one << ((key >> np.uint64(6)) & last))


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
def mark_windows(tokens_NL: Array, window_tokens: Int, bits: Array, shift: Any) -> None:
    """Set the bits of all windows in a filter.

    Args:
        tokens_NL: (N, L) uint16.
        window_tokens: Tokens a window, at most 8.
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
    """Collect the windows that may be marked, sequence by sequence while there is room.

    Args:
        tokens_NL: (N, L) uint16.
        first: The sequence to begin with.
        window_tokens: Tokens a window, at most 8.
        bits: (2^k,) uint64, of `mark_windows`.
        shift: 64 - k.
        found_C3: (C, 3) uint64, written: the two words of a window, and the sequence;
            room for a sequence's windows at least.

    Returns:
        The sequence to go on with, and how many windows were collected.
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
    found_C3: Array, part: Int, parts: Int, words: Array, owners: Array, bits: Array, shift: Any
) -> None:
    """Put the collected windows of a part into an open-addressing table, as nobody's so far.

    Args:
        found_C3: (C, 3) uint64, of `collect_windows`.
        part: Which part is looked at.
        parts: How many there are.
        words: (2^k, 2) uint64, changed; more slots than windows.
        owners: (2^k,) uint8, changed; 0 for a free slot.
        bits: (2^j,) uint64, changed: a small filter of the windows in the table.
        shift: 64 - j.
    """
    for c in range(len(found_C3)):
        low, high, _ = found_C3[c]
        key = mix(low ^ mix(high))
        if is_in_part(key, part, parts):
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
    part: Int,
    parts: Int,
    words: Array,
    owners: Array,
    bits: Array,
    shift: Any,
) -> None:
    """Note which windows of a table some sequences have.

    Args:
        tokens_NL: (N, L) uint16.
        window_tokens: Tokens a window, at most 8.
        owner: The bit that says whose they are; below `TAKEN`.
        part: Which part is looked at.
        parts: How many there are.
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
            if bits[key >> shift] & mine == mine and is_in_part(key, part, parts):
                slot = find_window(low, high, key, words, owners)
                if owners[slot]:
                    owners[slot] |= np.uint8(owner)


@compiled
def count_windows(
    found_C3: Array, part: Int, parts: Int, words: Array, owners: Array, counts_KN: Array
) -> None:
    """Add up the collected windows of every sequence that each owner has.

    Args:
        found_C3: (C, 3) uint64, of `collect_windows`.
        part: Which part is looked at.
        parts: How many there are.
        words: (2^k, 2) uint64, of `add_windows`.
        owners: (2^k,) uint8, of `own_windows`.
        counts_KN: (K, N) int64, added to.
    """
    for c in range(len(found_C3)):
        low, high, n = found_C3[c]
        key = mix(low ^ mix(high))
        if is_in_part(key, part, parts):
            found = owners[find_window(low, high, key, words, owners)]
            for k in range(len(counts_KN)):
                counts_KN[k, n] += (found >> k) & 1
