"""Passages are read alike with and without their losses."""

import numpy as np
import pytest
import torch

from enigma.configuration_enigma import EnigmaConfig
from enigma.language_model.memory.ngram_counts import count_ngrams
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.flow.documents.passages import (
    Passages,
    mean_states,
    read_beginnings,
    read_passages,
)
from pipelines.flow.documents.sentence_order import SentenceEnds

STOP = 1
ENDS = SentenceEnds([STOP], [])


@pytest.fixture(params=["network", "mixture"])
def model(request: pytest.FixtureRequest) -> EnigmaForCausalLM:
    config = EnigmaConfig(
        vocab_size=50, d=8, num_rev_blocks=1, num_rotors=1, num_heads=2, num_transformer_layers=1,
        conv1x1_positions=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = EnigmaForCausalLM(config).eval()
    if request.param == "mixture":
        model.set_ngrams(count_ngrams(torch.randint(5, 12, (9, 30)), 50, order=3))
    return model


def test_states_are_the_same_without_the_losses(model: EnigmaForCausalLM) -> None:
    passages = Passages([[5, 6, 7, 8], [9], [10, 11]], np.arange(3), 3)
    reading = read_passages(model, passages, ENDS)
    assert torch.equal(mean_states(model, passages), reading.states)
    assert not reading.states.requires_grad


def test_the_loss_is_that_of_the_language_model(model: EnigmaForCausalLM) -> None:
    ids = [5, 6, 7, 8, 9, 10]
    ids_1L = torch.tensor([ids])
    with torch.no_grad():
        expected = model(input_ids=ids_1L, labels=ids_1L).loss.item()
    reading = read_passages(model, Passages([ids], np.arange(1), 1), ENDS)
    assert reading.loss_nats[0] == pytest.approx(expected, rel=1e-5)


def test_what_is_read_of_a_beginning_is_what_is_read_of_it_alone(
    model: EnigmaForCausalLM,
) -> None:
    ids = [[5, STOP, 7, STOP, 9, STOP, 6, STOP, 10], [11, 5, 5, STOP, 8, 7, 9, STOP, 5]]
    beginnings = read_beginnings(model, Passages(ids, np.arange(2), 2), ENDS, [2, 3, 9])
    for length, found in zip([2, 3, 9], beginnings, strict=True):
        cut = Passages([passage[:length] for passage in ids], np.arange(2), 2)
        alone = read_passages(model, cut, ENDS)
        torch.testing.assert_close(found.states, alone.states)
        np.testing.assert_allclose(found.loss_nats, alone.loss_nats, rtol=1e-5)
        np.testing.assert_allclose(found.order_nats, alone.order_nats, atol=1e-5)
    assert np.isnan([read.order_nats for read in beginnings]).tolist() == [
        [True, True], [True, True], [False, True],
    ], "there is another order of three sentences between two others"  # fmt: skip


def test_few_of_many_beginnings_are_read_in_other_orders(
    model: EnigmaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.flow.documents.passages.MAX_REORDERED", 2)
    ids = [[5, STOP, 7, STOP, 9, STOP, 6, STOP, number] for number in range(5, 11)]
    [found] = read_beginnings(model, Passages(ids, np.arange(6), 6), ENDS, [9])
    read = np.flatnonzero(np.isfinite(found.order_nats))
    assert len(read) == 2
    assert read[1] - read[0] == 3, "evenly spaced"
    whole = read_passages(model, Passages(ids, np.arange(6), 6), ENDS)
    np.testing.assert_allclose(found.order_nats[read], whole.order_nats[read], atol=1e-5)


def test_the_order_of_sentences_is_read_against_others_of_the_same_passage() -> None:
    """By a model that has seen which sentence follows which."""
    story = [token for first in range(5, 19, 2) for token in (first, first + 1, STOP)]
    torch.manual_seed(0)
    config = EnigmaConfig(
        vocab_size=50, d=8, num_rev_blocks=1, num_rotors=1, num_heads=2, num_transformer_layers=1,
        conv1x1_positions=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = EnigmaForCausalLM(config).eval()
    model.set_ngrams(count_ngrams(torch.tensor([2 * story] * 9), 50, order=3))
    shuffled = story[:3] + story[9:12] + story[3:6] + story[15:18] + story[6:9] + story[12:15]
    shuffled += story[18:]
    found = read_passages(model, Passages([story, shuffled, story[:12]], np.arange(3), 3), ENDS)
    assert found.order_nats[0] < -0.05, "in any other order the story is harder to follow"
    assert found.order_nats[1] > found.order_nats[0] + 0.05
    assert np.isnan(found.order_nats[2])
    by_hand = [
        read_passages(model, Passages([order], np.arange(1), 1), ENDS).loss_nats[0]
        for order in ENDS.other_orders(story)
    ]
    assert found.order_nats[0] == pytest.approx(found.loss_nats[0] - np.mean(by_hand), abs=1e-6)
