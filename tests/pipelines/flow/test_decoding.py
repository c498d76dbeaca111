"""The head decodes states, and the table shows the most frequent tokens."""

import math

import pytest
import torch

from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.data.text.vocabulary import load_tokenizer
from pipelines.flow.decoding import decode, draw_tokens, token_table

VOCABULARY = 12


@pytest.fixture
def model() -> EnigmaForCausalLM:
    config = EnigmaConfig(
        vocab_size=VOCABULARY, d=8, num_rev_blocks=1, num_rotors=1, num_heads=2,
        num_transformer_layers=1, conv1x1_positions=4, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return EnigmaForCausalLM(config).eval()


def test_a_state_along_a_token_decodes_to_that_token(model) -> None:
    unit_VD = torch.nn.functional.normalize(torch.randn(VOCABULARY, 8))
    model.lm.head.weight.data.copy_(unit_VD)
    got = decode(model, 1e3 * unit_VD)
    assert got.likeliest.tolist() == list(range(VOCABULARY))
    assert draw_tokens(model, 1e3 * unit_VD, seed=0).tolist() == list(range(VOCABULARY))
    assert got.mean_prediction.tolist() == pytest.approx([1 / VOCABULARY] * VOCABULARY)
    assert got.entropy_nats == pytest.approx(0.0, abs=1e-6)


def test_a_state_that_says_nothing_is_uniform(model) -> None:
    nothing_ND = torch.zeros(600, 8)
    assert decode(model, nothing_ND).entropy_nats == pytest.approx(math.log(VOCABULARY))
    first, again, other = (draw_tokens(model, nothing_ND, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.unique().tolist() == list(range(VOCABULARY))


def test_the_table_is_sorted_and_safe_for_markdown() -> None:
    tokenizer = load_tokenizer("bert-base-chinese")
    cao, bar, comma = tokenizer.convert_tokens_to_ids(["曹", "|", "，"])
    tokens_N = torch.tensor([cao, cao, bar, cao])
    columns = {"true": tokens_N, "drawn": torch.full((4,), comma)}
    lines = token_table(tokenizer, columns).splitlines()
    assert lines[4] == "| 1 | 曹 75.0% | ， 100.0% |"
    assert lines[5] == "| 2 | &#124; 25.0% |  |"
