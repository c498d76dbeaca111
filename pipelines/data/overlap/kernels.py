"""The compiled loops of the window filter (`data/text/kernels.py` says when they are used).

Shape legend: N sequences, L length, W windows, C collected windows.
"""

from typing import Any

import numpy as np

from pipelines.data.text.kernels import Array, Int, compiled, two_bits


@compiled
def hash_sequence(tokens_L: Array, window_tokens: Int, multiplier: Any, hashes_W: Array) -> None:
    """Hash the windows of a sequence as `window_index.window_hashes` does."""
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
        window_tokens: Tokens per window; at most L.
        multiplier: Of `window_index.window_hashes`.
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
    """Collect the windows that pass a filter, sequence by sequence while there is room.

    Args:
        tokens_NL: (N, L) uint16.
        first: The sequence to start with.
        window_tokens: Tokens per window; at most L.
        multiplier: Of `window_index.window_hashes`, whose hashes these are.
        words: (2^k,) uint64, the filter; its bits are those of `window_index.bits_of`.
        shift: 64 - k.
        hashes_C: (C,) uint64, written; room for at least the windows of one sequence.
        rows_C: (C,) int32, written.

    Returns:
        The sequence to continue with, and the number of windows collected.
    """
    num_windows = tokens_NL.shape[1] - window_tokens + 1
    found = 0
    for n in range(first, len(tokens_NL)):
        if found + num_windows > len(hashes_C):
            return n, found
        last = found + num_windows
        hash_sequence(tokens_NL[n], window_tokens, multiplier, hashes_C[found:last])
        # All hashes are ready, so only reads of the filter are in flight here. Each window is
        # written and then counted if it passes: there is no branch to mispredict.
        for w in range(found, last):
            key = hashes_C[w]
            bits = two_bits(key)
            hashes_C[found] = key
            rows_C[found] = n
            found += words[key >> shift] & bits == bits
    return len(tokens_NL), found
