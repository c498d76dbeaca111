"""Overlap: the matches are those of a count by hand."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.overlap.reference import Match, Reference, exact_matches
from pipelines.data.overlap.window_index import WindowIndex
from pipelines.data.shards import fixed_binary

Draw = Callable[[int, int], np.ndarray]


def brute_containment(sequence: np.ndarray, reference_ML: np.ndarray, window: int) -> float:
    """By a set of tuples."""

    def windows(tokens: np.ndarray) -> list[tuple[int, ...]]:
        return [tuple(tokens[i : i + window].tolist()) for i in range(len(tokens) - window + 1)]

    known = {item for row in reference_ML for item in windows(row)}
    mine = windows(sequence)
    return sum(item in known for item in mine) / len(mine)


@given(seed=st.integers(0, 2**32 - 1), window=st.integers(1, 6), size=st.integers(2, 4))
def test_containment_equals_a_count_by_hand(seed: int, window: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    # Few ids, so that windows repeat within and between sequences.
    train_NL = generator.integers(0, size, size=(6, 9), dtype=np.uint16)
    reference_ML = generator.integers(0, size, size=(3, 9), dtype=np.uint16)
    windows = 3 * (9 - window + 1)
    counts = [
        WindowIndex([reference_ML], windows, window, **options).count(train_NL, use_numba=flag)
        for options in ({}, {"windows_per_block": 7})
        for flag in (True, False)
    ]
    assert all(count.tolist() == counts[0].tolist() for count in counts)
    found = Reference({"test": reference_ML}, window).matches(train_NL, max_containment=0.3)
    in_blocks = Reference({"test": reference_ML}, window, windows_per_block=7)
    assert in_blocks.matches(train_NL, max_containment=0.3) == found
    expected = {}
    for row, sequence in enumerate(train_NL):
        share = brute_containment(sequence, reference_ML, window)
        if share > 0.3:
            expected[row] = pytest.approx(share)
    assert {match.sequence: match.containment for match in found} == expected


def test_exact_matches_name_the_first_equal_row(random_tokens: Draw) -> None:
    reference_ML = random_tokens(0, 5)
    reference_ML[4] = reference_ML[1]
    train_NL = np.stack([reference_ML[1], random_tokens(1, 1)[0], reference_ML[3]])
    found = exact_matches(fixed_binary(train_NL), fixed_binary(reference_ML))
    assert found.tolist() == [1, -1, 3]


def test_a_match_names_the_split_the_row_and_the_method(random_tokens: Draw) -> None:
    validation_ML, test_ML, train_NL = (random_tokens(seed, 6) for seed in range(3))
    train_NL[1] = test_ML[4]
    train_NL[3, 5:25] = validation_ML[2, 3:23]
    reference = Reference({"validation": validation_ML, "test": test_ML}, 8)
    assert reference.matches(train_NL, max_containment=0.15) == [
        Match(1, "test", 4, "exact", 1.0),
        Match(3, "validation", 2, "near", 13 / 25),
    ]


def test_an_edited_and_shifted_copy_is_found(random_tokens: Draw) -> None:
    """Every tenth token replaced, moved by half a sequence: no sequence is equal."""
    generator = np.random.default_rng(0)
    test_stream = random_tokens(0, 200).reshape(-1)
    copy = test_stream.copy()
    edits = generator.random(len(copy)) < 0.05
    copy[edits] = 7000
    train_NL = copy[16:-16].reshape(-1, 32)
    reference = Reference({"test": test_stream.reshape(-1, 32)}, 8)
    found = reference.matches(train_NL, max_containment=0.15)
    assert len(found) >= 0.9 * len(train_NL)
    assert {match.method for match in found} == {"near"}


def test_the_bound_itself_is_allowed(random_tokens: Draw) -> None:
    test_ML, train_NL = random_tokens(0, 1), random_tokens(1, 1)
    train_NL[0, :12] = test_ML[0, :12]
    reference = Reference({"test": test_ML}, 8)
    assert reference.matches(train_NL, max_containment=5 / 25) == []
    assert len(reference.matches(train_NL, max_containment=4 / 25)) == 1


def test_without_a_reference_nothing_matches(random_tokens: Draw) -> None:
    assert Reference({}, 8).matches(random_tokens(0, 3), max_containment=0.0) == []
    empty = np.empty((0, 32), dtype=np.uint16)
    reference = Reference({"test": empty}, 8)
    assert reference.matches(random_tokens(0, 3), max_containment=0.0) == []
    assert Reference({"test": random_tokens(0, 3)}, 8).matches(empty, max_containment=0.0) == []
