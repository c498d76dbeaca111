"""What is typical depends on the length, and shortness counts as it is rare."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.base.errors import UserError
from pipelines.flow.documents.typical import Typical, TypicalLength


def test_too_likely_is_atypical_too() -> None:
    typical = Typical.of([16], [np.arange(1.0, 6.0)])
    low, middle, high = typical.deviations(np.array([0.0, 3.0, 6.0]), np.array([16, 9, 400]))
    assert middle == 0.0
    assert -low == high > 1.0


def test_between_two_lengths_what_is_typical_is_between() -> None:
    typical = Typical.of([8, 32], [np.array([6.0, 7.0, 8.0]), np.array([2.0, 3.0, 4.0])])
    at = np.array([4, 8, 16, 32, 64])
    assert typical.deviations(np.array([7.0, 7.0, 5.0, 3.0, 3.0]), at) == pytest.approx(0)
    assert typical.deviations(np.full(5, 7.0), at)[2:].min() > 1


def test_each_side_of_a_skewed_value_has_its_own_spread() -> None:
    """A twentieth of held-out passages is beyond 1.64 standard deviations on either side."""
    values = np.random.default_rng(0).exponential(size=10_001)
    typical = Typical.of([16], [values])
    deviations = typical.deviations(values, np.full(len(values), 16))
    assert (deviations > 1.645).mean() == pytest.approx(0.05, abs=1e-3)
    assert (deviations < -1.645).mean() == pytest.approx(0.05, abs=1e-3)
    assert typical.above[0] > 2 * typical.below[0]


@pytest.mark.parametrize("values", [np.ones(9), np.array([*np.ones(19), 2.0])])
def test_held_out_passages_without_spread_are_refused(values: np.ndarray) -> None:
    with pytest.raises(UserError, match=f"passages that differ, got {len(values)} of which"):
        Typical.of([8, 16], [np.arange(9.0), values])


def test_short_documents_are_odd_where_they_are_rare() -> None:
    asked = np.array([8, 17, 128, 255, 256, 5000])
    rare = TypicalLength.of(256, np.full(999, 3000)).deviations(asked)
    assert rare[2:4] == pytest.approx([-3.09 - 1, -3.09], abs=0.01)  # one in a thousand, halved
    assert rare[0] == pytest.approx(-3.09 - 5, abs=0.01)
    assert rare[4:].tolist() == [0, 0]
    common = TypicalLength.of(256, np.full(999, 16)).deviations(asked)
    assert common[0] == pytest.approx(-3.09 - 1, abs=0.01)
    assert common[1:].tolist() == [0, 0, 0, 0, 0]
    known = TypicalLength.of(256, np.array([1, *[3000] * 998])).deviations(np.array([1, 2, 255]))
    assert known == pytest.approx(-2.88, abs=0.01), "within what is known, rarity alone counts"


@given(st.lists(st.integers(1, 10_000), min_size=1), st.integers(2, 600))
def test_the_shorter_the_odder(tokens: list[int], longest: int) -> None:
    typical = TypicalLength.of(longest, np.array(tokens))
    deviations = typical.deviations(np.arange(1, longest + 1))
    assert (np.diff(deviations) >= 0).all()
    assert np.isfinite(deviations).all()
    assert deviations[-1] == 0
