"""The n-gram baselines are proper distributions and match small examples computed by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.language_model.baselines import NGramModel

VOCABULARY = 7


def corpus(seed: int, *, sequences: int = 6, length: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, VOCABULARY - 2, size=(sequences, length)).astype(np.uint16)


@settings(deadline=None)
@given(seed=st.integers(0, 200), order=st.integers(1, 5))
def test_every_distribution_sums_to_one(seed: int, order: int) -> None:
    model = NGramModel(corpus(seed), order=order, vocabulary_size=VOCABULARY)
    context = np.random.default_rng(seed + 1).integers(0, VOCABULARY, size=order + 2)
    rows = np.stack([np.append(context, w) for w in range(VOCABULARY)]).astype(np.uint16)
    assert model.probabilities(rows)[:, -1].sum() == pytest.approx(1.0, abs=1e-12)


def test_a_small_example_by_hand() -> None:
    # a b a b a c: unigram counts a 3, b 2, c 1, D = 1 / (1 + 2) = 1/3.
    tokens = np.array([[0, 1, 0, 1, 0, 2]], dtype=np.uint16)
    model = NGramModel(tokens, order=1, vocabulary_size=4)
    p = model.probabilities(np.array([[0, 1, 2, 3]], dtype=np.uint16))[0]
    held_back = (1 / 3) * 3 / 6
    expected = [(n - 1 / 3) / 6 + held_back / 4 for n in (3, 2, 1)] + [held_back / 4]
    assert p == pytest.approx(expected, abs=1e-12)


def test_a_bigram_backs_off_to_continuation_counts() -> None:
    # Bigrams: ab 2, ba 2, ac 1; left neighbours: a 1, b 1, c 1.
    tokens = np.array([[0, 1, 0, 1, 0, 2]], dtype=np.uint16)
    model = NGramModel(tokens, order=2, vocabulary_size=4)
    p_b_after_a = model.probabilities(np.array([[0, 1]], dtype=np.uint16))[0, 1]
    unigram_discount = 0.9
    lower = (1 - unigram_discount) / 3 + unigram_discount * 3 / 3 / 4
    discount = 1 / (1 + 2 * 2)
    assert p_b_after_a == pytest.approx((2 - discount + discount * 2 * lower) / 3, abs=1e-12)


def test_a_longer_memory_predicts_a_repeating_text_better() -> None:
    text = np.tile(np.array([0, 1, 2, 0, 3, 4], dtype=np.uint16), 20).reshape(4, 30)
    losses = [
        NGramModel(text, order=order, vocabulary_size=VOCABULARY).nll_nats(text)
        for order in (1, 2, 3)
    ]
    assert losses[0] > losses[1] > losses[2] > 0.0


def test_unseen_text_has_a_finite_loss() -> None:
    model = NGramModel(corpus(0), order=5, vocabulary_size=VOCABULARY)
    unseen = np.full((1, 9), VOCABULARY - 1, dtype=np.uint16)
    assert np.isfinite(model.nll_nats(unseen))
