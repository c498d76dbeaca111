"""Re-streamed keys: what is planted is found, and a search that misses it is refused."""

import numpy as np
import pytest

from benchmarks.data import restream as data_restream
from benchmarks.data.restream import BLOCK, measure


def test_what_is_planted_is_found() -> None:
    rows = {row["name"]: row for row in measure(2 * BLOCK)}
    assert rows[f"{2 * BLOCK:,} sequences: keys on disk"]["value"] == 2 * BLOCK * 8 / 1e6
    assert rows[f"{2 * BLOCK:,} sequences: exact overlap"]["value"] > 0


def test_a_search_that_finds_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = lambda _, some: np.full(len(some), -1)  # noqa: E731
    monkeypatch.setattr(data_restream.HeldSequences, "matches", nothing)
    with pytest.raises(ValueError, match=r"planted \(52, 1000\), got \(0, 1000\)"):
        measure(2 * BLOCK)
