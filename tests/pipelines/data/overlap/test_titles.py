"""Equal keys are matched; the stage's tests show which documents go for their titles."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.overlap.titles import _both, _first_equal

KEYS = st.lists(st.integers(0, 5), max_size=12)


@given(wanted=KEYS, known=KEYS)
def test_the_first_equal_key_is_found(wanted: list[int], known: list[int]) -> None:
    found = _first_equal(np.array(wanted, np.uint64), np.array(known, np.uint64))
    assert found.tolist() == [known.index(key) if key in known else -1 for key in wanted]


def test_a_window_and_a_title_have_a_number_of_their_own() -> None:
    windows, keys = np.divmod(np.arange(10_000), 100)
    assert len(np.unique(_both(windows, keys.astype(np.uint64)))) == 10_000
