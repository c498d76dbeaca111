"""The index of windows: equal windows hash alike, and every window names its sequence."""

from collections.abc import Callable

import numpy as np
import pytest

from pipelines.data.overlap.window_index import WindowIndex, window_hashes

Draw = Callable[[int, int], np.ndarray]


def test_equal_windows_hash_alike_and_others_apart(random_tokens: Draw) -> None:
    tokens_NL = random_tokens(0, 500)
    tokens_NL[1, 3:11] = tokens_NL[0, 20:28]
    hashes_NW = window_hashes(tokens_NL, 8)
    assert np.array_equal(hashes_NW, window_hashes(tokens_NL, 8, use_numba=False))
    assert hashes_NW.shape == (500, 25)
    assert hashes_NW[1, 3] == hashes_NW[0, 20]
    assert len(np.unique(hashes_NW)) == 500 * 25 - 1


@pytest.mark.parametrize("windows_per_block", [10, 1000])
def test_the_main_owner_has_most_of_the_windows(
    random_tokens: Draw, windows_per_block: int
) -> None:
    tokens_NL = random_tokens(0, 6)
    mixed_NL = random_tokens(1, 2)
    mixed_NL[0, :12] = tokens_NL[2, :12]
    mixed_NL[0, 12:] = tokens_NL[5, 12:]
    mixed_NL[1, :10] = tokens_NL[4, :10]
    index = WindowIndex([tokens_NL], 6 * 25, 8, windows_per_block=windows_per_block)
    assert index.main_owners(mixed_NL).tolist() == [5, 4]
    assert index.count(mixed_NL).tolist() == [5 + 13, 3]
