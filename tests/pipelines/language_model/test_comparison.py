"""The paired bootstrap tells a difference from chance."""

import numpy as np
import pytest

from pipelines.data.shards import ShardReader
from pipelines.language_model.comparison import NATS_PER_BIT, Comparison, compare
from pipelines.language_model.losses import Losses, documents_of

BITS = {"unit": "bits per character", "nats_per_unit": NATS_PER_BIT}


def losses(seed: int, *, shift: float = 0.0, documents: int = 100, items: int = 400) -> Losses:
    """Items whose difficulty varies 20 times as much as two models of one kind differ."""
    hardness = np.random.default_rng(7).normal(5.0, 1.0, size=items)
    own = np.random.default_rng(seed).normal(0.0, 0.05, size=items)
    names = np.array([f"d{number % documents}" for number in range(items)], dtype=object)
    units = np.full(items, 200.0)
    return Losses(names, units, (hardness + own + shift) * units)


def test_a_true_difference_is_found_and_its_sign_is_right() -> None:
    better = compare(losses(0), losses(1, shift=-0.02), **BITS)
    assert better.better
    assert not better.worse
    assert better.low < -0.02 / NATS_PER_BIT < better.high
    assert better.drawn == "100 documents"
    worse = compare(losses(0), losses(1, shift=0.02), **BITS)
    assert worse.worse
    assert not worse.better


def test_the_interval_covers_the_truth_as_often_as_stated() -> None:
    """Two equal models: 95 of 100 intervals contain 0; at least 85 with so few draws."""
    found = [compare(losses(2 * seed), losses(2 * seed + 1), **BITS) for seed in range(40)]
    held = sum(not (one.better or one.worse) for one in found)
    assert held >= 34


def test_with_few_documents_sequences_are_drawn_instead() -> None:
    few = compare(losses(0, documents=6), losses(1, documents=6), **BITS)
    assert few.drawn == "400 sequences"


def test_equal_losses_are_a_tie_and_one_item_is_inconclusive() -> None:
    tie = compare(losses(0), losses(0), **BITS)
    assert (tie.difference, tie.low, tie.high) == (0.0, 0.0, 0.0)
    assert not tie.better
    assert not tie.worse
    one = compare(losses(0, items=1), losses(0, items=1, shift=-1.0), **BITS)
    assert not one.better
    assert "1 sequences" in str(one)


def test_different_items_are_refused() -> None:
    with pytest.raises(ValueError, match="same items"):
        compare(losses(0), losses(0, documents=50), **BITS)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_loss_that_is_not_finite_decides_nothing(value: float) -> None:
    broken = losses(0)
    broken.loss_nats[3] = value
    for one, other, name in ((broken, losses(1), "champion"), (losses(1), broken, "candidate")):
        with pytest.raises(ValueError, match=f"finite losses of the {name}, got 1 that are not"):
            compare(one, other, **BITS)


def test_the_result_is_the_same_every_time() -> None:
    assert compare(losses(0), losses(1), **BITS) == compare(losses(0), losses(1), **BITS)
    assert isinstance(compare(losses(0), losses(1), **BITS), Comparison)


def test_a_sequence_belongs_to_the_document_in_which_it_begins(write_shards) -> None:
    tokens = np.arange(4 * 8, dtype=np.uint16).reshape(4, 8)
    directory = write_shards({"train": tokens, "validation": tokens, "test": tokens})
    reader = ShardReader(directory, "test")
    assert list(documents_of(reader, np.array([3, 0]))) == ["test-id", "test-id"]
