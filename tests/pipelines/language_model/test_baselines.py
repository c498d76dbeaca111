"""The n-gram baselines are proper distributions and match small examples computed by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.language_model.baselines import ScoredCounts
from pipelines.language_model.counting import bucketed

NUM_CLASSES = 7


def corpus(seed: int, *, sequences: int = 6, length: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, NUM_CLASSES - 2, size=(sequences, length)).astype(np.uint16)


def probabilities(
    train_NL: np.ndarray, scored_NL: np.ndarray, directory: Path, *, order: int
) -> list[np.ndarray]:
    """What the models of orders 1 to `order` give each token."""
    num_by_class = np.bincount(train_NL.ravel(), minlength=NUM_CLASSES)
    with bucketed(
        [train_NL], np.arange(NUM_CLASSES, dtype=np.uint16), num_by_class, order,
        near=directory / "train", positions_per_bucket=20,
    ) as buckets:  # fmt: skip
        return list(ScoredCounts(scored_NL, buckets).probabilities(NUM_CLASSES))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 200), order=st.integers(1, 5))
def test_every_distribution_sums_to_one(
    tmp_path_factory: pytest.TempPathFactory, seed: int, order: int
) -> None:
    context = np.random.default_rng(seed + 1).integers(0, NUM_CLASSES, size=order + 2)
    rows = np.stack([np.append(context, w) for w in range(NUM_CLASSES)]).astype(np.uint16)
    found = probabilities(corpus(seed), rows, tmp_path_factory.mktemp("counts"), order=order)
    assert len(found) == order
    for p_NL in found:
        assert p_NL[:, -1].sum() == pytest.approx(1.0, abs=1e-12)
        assert (p_NL > 0).all()


def test_small_examples_by_hand(tmp_path: Path) -> None:
    # a b a b a c. Unigrams: a 3, b 2, c 1. Too few for estimates: D = 1/2, 1, 3/2.
    train = np.array([[0, 1, 0, 1, 0, 2]], dtype=np.uint16)
    scored = np.array([[0, 1, 2, 3]], dtype=np.uint16)
    unigram, bigram = probabilities(train, scored, tmp_path, order=2)
    held_back = (0.5 + 1.0 + 1.5) / 6 / NUM_CLASSES
    expected = [(3 - 1.5) / 6, (2 - 1.0) / 6, (1 - 0.5) / 6, 0.0]
    assert unigram[0] == pytest.approx([p + held_back for p in expected], abs=1e-12)
    # Below the bigram count left neighbours: a 2 (b and the start), b 1, c 1. Bigrams: ab 2, ac 1.
    lower_b = (1 - 0.5) / 4 + (0.5 + 1.0 + 0.5) / 4 / NUM_CLASSES
    after_a = (2 - 1.0) / 3 + (0.5 + 1.0) / 3 * lower_b
    assert bigram[0, 1] == pytest.approx(after_a, abs=1e-12)


def test_a_longer_memory_predicts_a_repeating_text_better(tmp_path: Path) -> None:
    text = np.tile(np.array([0, 1, 2, 0, 3, 4], dtype=np.uint16), 20).reshape(4, 30)
    losses = [-np.log(p).sum() for p in probabilities(text, text, tmp_path, order=3)]
    assert losses[0] > losses[1] > losses[2] > 0.0


def test_texts_shorter_than_the_order_and_unseen_ones_are_scored(tmp_path: Path) -> None:
    unseen = np.full((1, 3), NUM_CLASSES - 1, dtype=np.uint16)
    for p_NL in probabilities(corpus(0), unseen, tmp_path, order=5):
        assert np.isfinite(np.log(p_NL)).all()
