"""What is projected from measured memory, and what is not."""

import pytest

from benchmarks.data.scale import FULL, memory_row

SIZES = [300_000, 600_000, 1_200_000]


def test_memory_that_grows_is_projected_along_its_line() -> None:
    found = memory_row("clean", SIZES, [4e8 + 30 * size for size in SIZES])
    assert found["name"].endswith("projected with 30 bytes per sequence")
    assert found["value"] == pytest.approx((4e8 + 30 * FULL) / 1e9)


def test_memory_that_does_not_grow_is_not_projected() -> None:
    """The peaks of `tokenize` once gave a negative memory."""
    found = memory_row("tokenize", SIZES, [442_212_352, 402_690_048, 430_710_784])
    assert found["name"] == "tokenize, no growth measured: largest peak"
    assert found["value"] == 0.442212352
