"""Copies: runs of shared windows, and shares of a held-out document, counted by hand."""

import numpy as np

from pipelines.data.overlap.copies import find_excerpts, is_near_copy, shared_windows
from pipelines.data.overlap.hits import PAIR


def pairs_of(*runs: tuple[int, int, int, int, int]) -> np.ndarray:
    """Pairs of runs: held-out document, its position, document, its position, windows."""
    rows = [
        (held, at + k, document, position + k, 0, 0)
        for held, at, document, position, count in runs
        for k in range(count)
    ]
    return np.array(rows, PAIR)


def test_a_run_is_an_excerpt_from_the_bound_on() -> None:
    found = find_excerpts(pairs_of((0, 5, 0, 900, 20), (0, 100, 1, 5, 19)), 20)
    assert found.tolist() == [True] * 20 + [False] * 19


def test_edits_do_not_end_an_excerpt_and_distance_does() -> None:
    # A substitution leaves out eight windows; a deletion shifts what follows.
    edited = pairs_of((0, 0, 0, 50, 7), (0, 15, 0, 65, 6), (0, 29, 0, 78, 7))
    assert find_excerpts(edited, 20).all()
    # Elsewhere in the held-out document, in the other document, or in another document.
    for other in ((0, 60, 0, 110, 7), (0, 29, 0, 300, 7), (0, 29, 1, 79, 7), (1, 29, 0, 79, 7)):
        assert not find_excerpts(pairs_of((0, 0, 0, 50, 7), (0, 15, 0, 65, 6), other), 20).any()


def test_a_window_counts_once_however_often_it_is_repeated() -> None:
    repeated = pairs_of(*((0, 3, 0, 10 * k, 5) for k in range(8)))
    assert not find_excerpts(repeated, 6).any()
    shared, places = shared_windows(repeated)
    assert set(shared.tolist()) == {5}
    assert set(places.tolist()) == {1}


def test_what_documents_share_is_counted_per_pair_of_documents() -> None:
    pairs = pairs_of((0, 0, 0, 50, 3), (0, 20, 0, 10, 4), (0, 0, 1, 0, 2), (1, 0, 0, 0, 1))
    order = np.random.default_rng(0).permutation(len(pairs))
    shared, places = shared_windows(pairs[order])
    assert shared.tolist() == np.array([7] * 7 + [2] * 2 + [1])[order].tolist()
    assert places.tolist() == np.array([2] * 7 + [1] * 3)[order].tolist()


def test_a_near_copy_shares_enough_at_several_places() -> None:
    shared, places = np.array([5, 5, 4, 4, 3]), np.array([2, 1, 2, 2, 2])
    windows = np.array([100, 100, 100, 80, 20])
    assert is_near_copy(shared, places, windows).tolist() == [True, False, False, True, False]


def test_half_of_a_short_document_in_one_place_is_a_near_copy() -> None:
    shared, windows = np.array([5, 5, 3, 4]), np.array([10, 11, 3, 4])
    places = np.ones(4, np.int64)
    assert is_near_copy(shared, places, windows).tolist() == [True, False, False, True]


def test_without_pairs_nothing_is_found() -> None:
    none = np.empty(0, PAIR)
    assert len(find_excerpts(none, 20)) == 0
    assert [len(counts) for counts in shared_windows(none)] == [0, 0]
