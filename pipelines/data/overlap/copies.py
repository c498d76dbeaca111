"""Find copies: documents that share rare wording with one held-out document.

An excerpt is a run of shared windows at about the same distance in both documents. A near copy
shares some windows of several places in a held-out document, as edits may leave no long run; or
half of them, as a short document has no long run.

Shape legend: P pairs of windows.
"""

import numpy as np
import numpy.typing as npt

from pipelines.data.overlap.hits import Records

# Shifts by up to half of it, by characters inserted or deleted, stay within one excerpt.
DRIFT = 32
# Two edits within eight characters leave a gap of 16 windows at most.
MAX_GAP = 16
# One character in five edited leaves a window of eight whole with a probability of 0.17.
MIN_SHARE = 0.05
MIN_SHARED, MIN_PLACES = 4, 2
# In one place.
MIN_SHARE_AT_ONCE = 0.5

Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


def find_excerpts(pairs_P: Records, excerpt_windows: int) -> Flags:
    """Tell which pairs belong to an excerpt.

    Args:
        pairs_P: (P,) `PAIR`, in any order, with all pairs of each held-out document.
        excerpt_windows: Fewest shared windows of an excerpt.

    Returns:
        (P,) bool.
    """
    found_P = np.zeros(len(pairs_P), np.bool_)
    distance_P = pairs_P["position"].astype(np.int64) - pairs_P["held_position"]
    for shift in (0, DRIFT // 2):
        order, run_P = _runs(pairs_P, (distance_P + shift) // DRIFT, MAX_GAP)
        long_P = np.bincount(run_P, weights=_is_new(pairs_P[order], run_P)) >= excerpt_windows
        found_P[order] |= long_P[run_P]
    return found_P


def shared_windows(pairs_P: Records) -> tuple[Integers, Integers]:
    """Count what the two documents of each pair share.

    Args:
        pairs_P: As for `find_excerpts`.

    Returns:
        Two (P,) int64: distinct windows of the held-out document, and the places where
        consecutive ones stand.
    """
    nowhere_P = np.zeros(len(pairs_P), np.int64)
    order, document_P = _runs(pairs_P, nowhere_P, np.iinfo(np.int64).max)
    is_new_P = _is_new(pairs_P[order], document_P)
    _, place_P = _runs(pairs_P, nowhere_P, 1)
    starts_P = np.diff(place_P, prepend=-1)
    counts = np.empty((2, len(pairs_P)), np.int64)
    for row, weights in zip(counts, (is_new_P, starts_P), strict=True):
        row[order] = np.bincount(document_P, weights=weights).astype(np.int64)[document_P]
    return counts[0], counts[1]


def is_near_copy(shared_P: Integers, places_P: Integers, windows_P: Integers) -> Flags:
    """Tell which pairs of documents are near copies.

    Args:
        shared_P: (P,) int64, distinct windows that are shared.
        places_P: (P,) int64, the places where they stand.
        windows_P: (P,) int64, all windows of the held-out document.
    """
    found_P: Flags = shared_P >= np.maximum(MIN_SHARE * windows_P, MIN_SHARED)
    found_P &= (places_P >= MIN_PLACES) | (shared_P >= MIN_SHARE_AT_ONCE * windows_P)
    return found_P


def _runs(pairs_P: Records, cell_P: Integers, max_gap: int) -> tuple[Integers, Integers]:
    """Order the pairs into runs; return the order, and the run of each place in it.

    A run has one held-out document, one document and one cell, and no gap above `max_gap`.
    """
    held_P, document_P = pairs_P["held_document"], pairs_P["document"]
    position_P = pairs_P["held_position"].astype(np.int64)
    order = np.lexsort((position_P, cell_P, document_P, held_P))
    breaks = np.diff(position_P[order]) > max_gap
    for key_P in (held_P, document_P, cell_P):
        breaks |= np.diff(key_P[order]) != 0
    return order, np.cumsum(np.append(False, breaks)[: len(order)])


def _is_new(pairs_P: Records, run_P: Integers) -> Flags:
    """Tell which ordered pairs are the first of their run with their held-out window."""
    is_new_P = (np.diff(pairs_P["held_position"]) != 0) | (np.diff(run_P) != 0)
    return np.append(True, is_new_P)[: len(pairs_P)]
