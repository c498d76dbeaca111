"""The counts equal those of a dictionary, however many buckets divide the work."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.language_model.counting import (
    Buckets,
    Counts,
    bucketed,
    count,
    counts_of_counts,
    discounts,
    windows,
)

NUM_CLASSES = 6
ORDER = 5
Gram = tuple[int, ...]


def text(seed: int, *, sequences: int = 5, length: int = 9) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, NUM_CLASSES, (sequences, length)).astype(np.uint16)


def by_dictionary(classes_NL: np.ndarray, k: int) -> tuple[Counter[Gram], dict[Gram, int]]:
    """Occurrences and left neighbours of the n-grams of one order, by the definition."""
    occurrences: Counter[Gram] = Counter()
    neighbours: dict[Gram, set[object]] = defaultdict(set)
    for number, sequence in enumerate(classes_NL.tolist()):
        for start in range(len(sequence) - k + 1):
            gram = tuple(sequence[start : start + k])
            occurrences[gram] += 1
            # Each start of a sequence is a neighbour of its own.
            neighbours[gram].add(sequence[start - 1] if start else ("start", number))
    return occurrences, {gram: len(left) for gram, left in neighbours.items()}


def spelled(counted: list[Counts]) -> list[list[Gram]]:
    """The tokens of every n-gram of every order."""
    grams: list[list[Gram]] = [[()]]
    for counts in counted:
        rows = zip(counts.prefix.tolist(), counts.last.tolist(), strict=True)
        grams.append([(*grams[-1][prefix], last) for prefix, last in rows])
    return grams[1:]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), length=st.integers(1, 12), sequences=st.integers(1, 8))
def test_every_order_is_counted_as_by_a_dictionary(seed: int, length: int, sequences: int) -> None:
    classes_NL = text(seed, sequences=sequences, length=length)
    counted = count(windows(classes_NL, ORDER))
    for k, (counts, grams) in enumerate(zip(counted, spelled(counted), strict=True), start=1):
        occurrences, neighbours = by_dictionary(classes_NL, k)
        assert grams == sorted(occurrences)
        assert counts.occurrences.tolist() == [occurrences[gram] for gram in grams]
        assert counts.neighbours.tolist() == [neighbours[gram] for gram in grams]
        assert (np.diff(counts.keys) > 0).all()


def test_taking_an_occurrence_away_reaches_the_order_below_exactly_if_none_is_left() -> None:
    """What leave-one-out in training relies on."""
    classes_NL = text(1, sequences=4, length=7)
    for row, end in np.ndindex(classes_NL.shape):
        for k in range(1, min(ORDER, end + 1)):
            gram = tuple(classes_NL[row, end - k + 1 : end + 1].tolist())
            longer = tuple(classes_NL[row, end - k : end + 1].tolist()) if end >= k else None
            _, neighbours = by_dictionary(classes_NL, k)
            without: set[object] = set()
            for number, sequence in enumerate(classes_NL.tolist()):
                for start in range(len(sequence) - k + 1):
                    taken_away = (number, start + k - 1) == (row, end)
                    if tuple(sequence[start : start + k]) == gram and not taken_away:
                        without.add(sequence[start - 1] if start else ("start", number))
            last_one = longer is None or by_dictionary(classes_NL, k + 1)[0][longer] == 1
            assert neighbours[gram] - len(without) == int(last_one)


@pytest.mark.parametrize("positions_per_bucket", [1, 20, 1000])
def test_buckets_in_order_are_the_whole(positions_per_bucket: int, tmp_path: Path) -> None:
    classes_NL = text(2, sequences=20, length=11)
    class_of_id = np.arange(NUM_CLASSES, dtype=np.uint16)
    num_by_class = np.bincount(classes_NL.ravel(), minlength=NUM_CLASSES)
    whole = spelled(count(windows(classes_NL, ORDER)))
    with bucketed(
        [classes_NL[:7], classes_NL[7:]], class_of_id, num_by_class, ORDER,
        near=tmp_path / "table", positions_per_bucket=positions_per_bucket,
    ) as buckets:  # fmt: skip
        parts = [spelled(counted) for counted in buckets]
    assert [[gram for part in parts for gram in part[k]] for k in range(ORDER)] == whole
    assert len(parts) == {1: NUM_CLASSES, 20: 6, 1000: 1}[positions_per_bucket]
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_on_the_disk_by_a_failure(tmp_path: Path) -> None:
    def broken() -> object:
        yield text(0)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"), bucketed(
        broken(), np.arange(NUM_CLASSES, dtype=np.uint16), np.full(NUM_CLASSES, 9), 3,
        near=tmp_path / "table",
    ):  # fmt: skip
        pass
    assert not list(tmp_path.iterdir())


def test_a_bucket_holds_at_most_what_is_aimed_at_or_one_class(tmp_path: Path) -> None:
    buckets = Buckets(tmp_path, np.array([50, 3, 3, 3, 40, 1]), 2, positions_per_bucket=10)
    assert len(buckets) >= 3


def test_discounts_by_hand() -> None:
    # Y = 8 / (8 + 2 * 4) = 1/2: 1 - 2 Y 4/8, 2 - 3 Y 2/4, 3 - 4 Y 1/2.
    assert discounts(np.array([8, 4, 2, 1])).tolist() == pytest.approx([0.5, 1.25, 2.0])
    assert discounts(np.array([8, 0, 2, 1])).tolist() == [0.5, 1.0, 1.5]
    assert counts_of_counts(np.array([1, 1, 2, 3, 4, 9, 9])).tolist() == [2, 1, 1, 1]


@given(st.lists(st.integers(1, 1000), min_size=4, max_size=4))
def test_a_discount_is_never_negative_nor_above_its_count(num_with_count: list[int]) -> None:
    found = discounts(np.array(num_with_count))
    assert (found >= 0).all()
    assert (found <= [1, 2, 3]).all()
