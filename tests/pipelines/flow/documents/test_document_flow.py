"""What is typical of the order of sentences is measured where held-out passages have sentences."""

import numpy as np
import torch

from pipelines.flow.documents.document_flow import MIN_ORDERED, _typical_order
from pipelines.flow.documents.passages import Reading


def reading(ordered: int) -> Reading:
    """Read passages of which only the first have sentences."""
    passages = 2 * MIN_ORDERED
    order_P = np.full(passages, np.nan)
    order_P[:ordered] = np.linspace(-0.3, -0.1, ordered)
    nats_P = np.ones(passages)
    return Reading(torch.zeros(passages, 2), nats_P, nats_P, order_P)


def test_lengths_at_which_few_passages_have_sentences_are_left_out() -> None:
    held_out = [reading(MIN_ORDERED - 1), reading(MIN_ORDERED), reading(2 * MIN_ORDERED)]
    typical = _typical_order([8, 16, 32], held_out)
    assert typical is not None
    assert typical.lengths == [16, 32]
    np.testing.assert_allclose(typical.medians, [-0.2, -0.2])
    # A shorter passage is compared at the shortest of them.
    np.testing.assert_allclose(typical.deviations(np.array([-0.2]), np.array([8])), 0, atol=1e-9)


def test_a_text_without_sentences_has_no_typical_order() -> None:
    assert _typical_order([8, 16], [reading(0), reading(3)]) is None
