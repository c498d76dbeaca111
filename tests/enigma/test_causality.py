"""The proof passes on the real model and fails on every planted leak."""

import pytest
import torch
from torch.nn import functional

from enigma.attention import CausalSelfAttention, alibi_slopes
from enigma.causality import prove_causality
from enigma.language_model.training_loss import training_loss
from enigma.layers import dropped_attention
from enigma.layers.causal_conv import CausalConv
from enigma.model import EnigmaLM


class SymmetricAttention(CausalSelfAttention):
    """The published leak: linear biases on |i - j| with no causal mask."""

    def attend(self, q_BHLC, k_BHSK, v_BHSK, context):
        position_S = torch.arange(q_BHLC.shape[-2])
        distance_LL = (position_S[:, None] - position_S).abs()
        bias_HLL = -alibi_slopes(self.num_heads)[:, None, None] * distance_LL
        return functional.scaled_dot_product_attention(
            q_BHLC, k_BHSK[..., :-2], v_BHSK, attn_mask=bias_HLL.to(v_BHSK)
        )


def plant_symmetric_attention(layer):
    leaky = SymmetricAttention(layer.attention.query.in_features, layer.attention.num_heads)
    leaky.load_state_dict(layer.attention.state_dict())
    layer.attention = leaky


def test_no_logit_depends_on_a_later_token(make_lm, make_causal_lm):
    report = prove_causality(make_lm(), length=16)
    assert report.is_causal
    assert report.stirred is None
    assert report.real.future_gradient == report.real.suffix_change == 0.0
    assert report.real.past_gradient > 0
    adapter = prove_causality(make_causal_lm(), length=16, ids=torch.arange(16))
    assert adapter.is_causal
    assert adapter.real.target_gradient == 0.0
    assert adapter.to_dict()["real"]["leak"] == ""


def test_learned_positions_are_causal_too(make_lm):
    assert prove_causality(make_lm(use_alibi=False, max_len=12), length=12).is_causal


def test_symmetric_attention_is_caught(make_lm):
    lm = make_lm()
    plant_symmetric_attention(lm.layers[1])
    report = prove_causality(lm, length=10)
    assert not report.is_causal
    assert report.real.future_gradient > 0
    assert report.real.suffix_change > 0
    assert "logit 0 has a derivative by the embedding of token 1" in report.real.leak


def test_a_leak_behind_the_first_block_of_queries_is_caught_by_a_text_that_reaches_it(
    make_lm, monkeypatch
):
    """Attention with dropout masks one block of queries after the other."""

    def leaky_blocks(length):
        first, *others = honest_blocks(length)
        return [first, *(half for rows, seen in others for half in halves(rows, seen))]

    def halves(rows, seen):  # the first half sees the keys of the second
        middle = (rows.start + rows.stop) // 2
        return (slice(rows.start, middle), seen), (slice(middle, rows.stop), seen)

    honest_blocks = dropped_attention._blocks
    lm = make_lm(attention_dropout=0.2)
    length = dropped_attention._ROWS + 8
    assert prove_causality(lm, length).is_causal
    monkeypatch.setattr(dropped_attention, "_blocks", leaky_blocks)
    assert prove_causality(lm, 32).is_causal, "a shorter text has one block"
    assert "in training" in prove_causality(lm, length).real.leak


class CentredConv(CausalConv):
    """A convolution that reads one token ahead."""

    def convolve(self, padded, length):
        ahead = functional.pad(padded, (0, 0, 0, 1))[..., 1:, :]
        return super().convolve(ahead, length)


def test_a_convolution_that_looks_ahead_is_caught(make_lm):
    lm = make_lm(kernel_size=3)
    assert prove_causality(lm, length=8).is_causal
    for block in lm.core.blocks:
        block.f.network.conv.__class__ = CentredConv
    report = prove_causality(lm, length=8)
    assert not report.is_causal
    assert report.real.suffix_change > 0


def test_a_leak_behind_fresh_zeros_is_caught():
    lm = EnigmaLM(
        50, 16, num_rev_blocks=1, num_transformer_layers=1, num_heads=2, conv1x1_positions=4
    )
    plant_symmetric_attention(lm.layers[0])
    report = prove_causality(lm, length=8)
    assert report.real.is_causal
    assert report.stirred is not None
    assert not report.is_causal


@pytest.mark.parametrize("shift", [0, -1])
def test_a_target_shifted_the_wrong_way_is_caught(make_causal_lm, shift):
    """Logit t is scored against token t (0) or token t - 1 (-1) instead of token t + 1."""
    model = make_causal_lm()

    def wrong_loss(logits, labels, **_):
        labels = labels.roll(-shift, dims=1)
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    model.loss_function = wrong_loss
    report = prove_causality(model, length=8)
    assert not report.is_causal
    assert report.real.future_gradient == 0.0
    assert report.real.target_gradient > 0
    assert "the loss of target" in report.real.leak


def test_a_loss_of_training_that_asks_for_the_token_it_reads_is_caught(make_causal_lm, monkeypatch):
    model = make_causal_lm(attention_dropout=0.1, hidden_dropout=0.1)
    state = torch.get_rng_state()
    assert prove_causality(model, length=8).is_causal
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training

    def wrong_loss(hidden, lm, labels, **_):
        return training_loss(hidden, lm, None, shift_labels_BL=labels)

    monkeypatch.setattr("enigma.modeling_enigma.training_loss", wrong_loss)
    report = prove_causality(model, length=8)
    assert not report.is_causal
    assert report.real.future_gradient == 0.0
    assert "in training, the loss of target" in report.real.leak


@pytest.mark.parametrize("make", ["make_lm", "make_causal_lm"])
def test_an_attention_of_training_that_sees_the_future_is_caught(make, request, monkeypatch):
    def see_all(q_BHLK, k_BHSK, v_BHSK, _):
        return functional.scaled_dot_product_attention(q_BHLK, k_BHSK, v_BHSK)

    model = request.getfixturevalue(make)(attention_dropout=0.1)
    monkeypatch.setattr("enigma.attention.dropped_attention", see_all)
    report = prove_causality(model, length=8)
    assert not report.is_causal
    assert report.real.suffix_change == 0.0
    assert "in training, logit 0 has a derivative by the embedding of token 1" in report.real.leak


def test_errors_say_what_was_expected(make_lm):
    with pytest.raises(ValueError, match="length must be at least 2"):
        prove_causality(make_lm(), 1)
    with pytest.raises(ValueError, match=r"the shape \(4,\), got \(3,\)"):
        prove_causality(make_lm(), 4, ids=torch.arange(3))
    with pytest.raises(TypeError, match="an EnigmaLM"):
        prove_causality(torch.nn.Linear(1, 1), 4)
