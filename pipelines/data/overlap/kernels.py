"""The compiled loops of the window filter (`data/text/kernels.py` says when they are used).

Shape legend: N sequences, L length, T tokens, P pieces of documents, F folded characters,
W windows.
"""

from typing import Any

import numpy as np

from pipelines.data.text.kernels import Array, Int, compiled, is_mark, two_bits


@compiled
def hash_windows(tokens_NL: Array, size: Int, multiplier: Any, hashes_NW: Array) -> None:
    """Hash the windows of all sequences as `windows.window_hashes` does.

    Args:
        tokens_NL: (N, L) unsigned integers.
        size: Tokens per window; at most L.
        multiplier: Of `windows.window_hashes`.
        hashes_NW: (N, W) uint64, written.
    """
    for n in range(len(tokens_NL)):
        for w in range(hashes_NW.shape[1]):
            key = np.uint64(0)
            for k in range(size):
                key = (key + np.uint64(tokens_NL[n, w + k])) * multiplier
                key = key ^ (key >> np.uint64(29))
            hashes_NW[n, w] = key


@compiled
def folded_size(ids_T: Array, starts: Array) -> Int:
    """Count the characters that tokens add to keys, those of bracketed marks included."""
    size = 0
    for token in ids_T:
        size += starts[token + 1] - starts[token]
    return size


@compiled
def fold_tokens(
    ids_T: Array,
    offsets: Array,
    table: Any,
    limits: Any,
    points_F: Array,
    sources_F: Array,
    ends: Array,
) -> None:
    """Fold as `windows.TokenFolder.fold` does, in one pass.

    Args:
        ids_T: (T,) uint16.
        offsets: (P + 1,) int64, where each piece starts.
        table: The arrays of a `TokenFolder`: points, starts, num_characters, num_han, num_others,
            bracket, ends_latin, starts_latin.
        limits: Characters and Han characters of a bracketed mark.
        points_F: (F,) uint32, written; room for what all tokens add.
        sources_F: (F,) int64, written.
        ends: (P + 1,) int64, written: where the key of each piece starts.
    """
    points, starts, num_characters, num_han, num_others, bracket, ends_latin, starts_latin = table
    found = 0
    for p in range(len(offsets) - 1):
        ends[p] = found
        # Since the last opening bracket; -1 if there is none, or another bracket came.
        opened, characters, han, others = -1, 0, 0, 0
        for t in range(offsets[p], offsets[p + 1]):
            token = ids_T[t]
            if bracket[token] < 0 and opened >= 0 and is_mark(characters, han, others, limits):
                found = opened
            if bracket[token] != 0:
                opened = found if bracket[token] > 0 else -1
                characters, han, others = 0, 0, 0
            else:
                characters += num_characters[token]
                han += num_han[token]
                others += num_others[token]
                if t > offsets[p] and starts_latin[token] and ends_latin[ids_T[t - 1]]:
                    characters += 1
            for at in range(starts[token], starts[token + 1]):
                points_F[found] = points[at]
                sources_F[found] = t
                found += 1
    ends[-1] = found


@compiled
def select_windows(
    folded: Any,
    size: Int,
    multiplier: Any,
    sieve: Any,
    sequences_T: Array,
    whole_N: Array,
    found: Any,
) -> Int:
    """Find windows as `windows.select_windows` does; nothing is stored of those that do not pass.

    Args:
        folded: Points, sources and offsets of a `Folded` with P keys.
        size: Characters per window.
        multiplier: Of `windows.window_hashes`.
        sieve: The words of a filter, and what leaves the number of a word of a hash.
        sequences_T: (T,) int64, the sequence of each token, from 0 on.
        whole_N: (N,) int64; windows within each sequence are added.
        found: The arrays of a `Windows`, with room for F; written.

    Returns:
        The number of windows that pass.
    """
    points_F, sources_F, ends = folded
    words, shift = sieve
    hashes_W, documents_W, positions_W, first_W, last_W = found
    n = 0
    for p in range(len(ends) - 1):
        for f in range(ends[p] + size - 1, ends[p + 1]):
            start = f - size + 1
            first, last = sources_F[start], sources_F[f]
            if sequences_T[first] == sequences_T[last]:
                whole_N[sequences_T[first]] += 1
            key = np.uint64(0)
            for k in range(start, f + 1):
                key = (key + np.uint64(points_F[k])) * multiplier
                key = key ^ (key >> np.uint64(29))
            bits = two_bits(key)
            # Each is written, and then counted if it passes: no branch to mispredict.
            hashes_W[n], documents_W[n], positions_W[n] = key, p, start - ends[p]
            first_W[n], last_W[n] = first, last
            n += words[key >> shift] & bits == bits
    return n


@compiled
def mark_hashes(hashes: Array, words: Array, shift: Any) -> None:
    """Set the bits of hashes in a filter of 2^k words; `shift` is 64 - k."""
    for key in hashes:
        words[key >> shift] |= two_bits(key)


@compiled
def passing(hashes_W: Array, words: Array, shift: Any, rows_W: Array) -> Int:
    """Find the windows that pass a filter.

    Args:
        hashes_W: (W,) uint64.
        words: (2^k,) uint64, the filter; its bits are those of `windows.bits_of`.
        shift: 64 - k.
        rows_W: (W,) int64; the indices of those that pass are written.

    Returns:
        How many pass.
    """
    found = 0
    # Each index is written, and then counted if the window passes: no branch to mispredict.
    for w in range(len(hashes_W)):
        key = hashes_W[w]
        bits = two_bits(key)
        rows_W[found] = w
        found += words[key >> shift] & bits == bits
    return found
