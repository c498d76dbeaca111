"""The pointer to earlier places of a text: what it predicts, and that it never reads ahead."""

import pytest
import torch
from torch.nn import functional
from transformers import DynamicCache

from enigma.causality import prove_causality
from enigma.language_model.memory import pointer as module
from enigma.language_model.memory.gate import gate_logits
from enigma.language_model.memory.ngram_counts import count_ngrams
from enigma.language_model.memory.pointer import Pointer

VOCABULARY = 120
FACTS = module._facts
REACHABLE, POSSIBLE = torch.arange(2, 40), torch.ones(VOCABULARY, dtype=torch.bool)
IDS = torch.tensor([[5, 50, 7, 5, 50, 9, 5, 50, 7, 3, 5, 50]])
"""Id 50 is not reachable; 5 50 is followed by 7, 9 and 7."""


@pytest.fixture
def pointing(stirred):
    torch.manual_seed(0)
    return stirred(Pointer(8, 4)).double().eval()


@pytest.fixture
def hidden():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 12, 8, generator=generator, dtype=torch.float64)


def test_it_is_the_formula_of_its_docstring(pointing, hidden):
    pointed = pointing(hidden, IDS)
    f_LC = functional.normalize(pointing.project(hidden[0]), dim=-1)
    sharpness, (one, two) = pointing.log_sharpness.exp(), pointing.repeats
    ids = IDS[0].tolist()
    for t in range(len(ids)):
        scores = [
            sharpness * f_LC[t] @ f_LC[s]
            + one * (ids[s] == ids[t])
            + two * (s > 0 and ids[s - 1 : s + 1] == ids[t - 1 : t + 1])
            for s in range(t)
        ]
        weights = torch.stack(scores).flatten().softmax(0) if scores else torch.zeros(0)
        torch.testing.assert_close(pointed.weight_BRS[0, t, :t], weights.double())
        assert not pointed.weight_BRS[0, t, t:].any()
        assert pointed.next_BRS[0, t, :t].tolist() == ids[1 : t + 1]


def test_a_repeat_is_predicted_also_of_an_id_that_is_not_reachable(pointing, hidden):
    with torch.no_grad():
        pointing.repeats.fill_(6.0)
    pointed = pointing(0 * hidden, IDS)
    p_V = torch.zeros(VOCABULARY, dtype=torch.float64)
    after_5 = pointed.at(lambda each: each[0, 10])  # what followed 5 so far: 50, always
    p_V.scatter_add_(0, after_5.next_BRS.clamp(min=0), after_5.weight_BRS)
    assert p_V[50] > 0.9
    assert p_V.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("reachable", [True, False])
def test_the_model_predicts_a_distribution_and_one_figure_whatever_the_path(
    make_causal_lm, reachable
):
    model = make_causal_lm(attention_dropout=0.0, pointer_channels=4).double()
    if reachable:
        model.set_reachable(REACHABLE, POSSIBLE)
    with torch.no_grad():
        model.lm.pointer.gate.bias.fill_(-1)
        log_p_BLV = model(IDS).logits
        torch.testing.assert_close(log_p_BLV.exp().sum(-1), torch.ones(1, 12).double())
        hidden_BLD = model.lm.hidden_states(IDS)
        network_BLV = model.lm.logits(hidden_BLD)
        # There is nothing to point at after the first token.
        torch.testing.assert_close(log_p_BLV[:, 0].exp(), network_BLV[:, 0].softmax(-1))
        target_BL1 = IDS[:, 1:].unsqueeze(-1)
        expected_BL = -log_p_BLV[:, :-1].gather(-1, target_BL1)[..., 0]
        found_BL = model.lm.nll_nats(hidden_BLD, IDS)
        torch.testing.assert_close(found_BL.double(), expected_BL, rtol=0, atol=1e-5)
    alone = functional.cross_entropy(network_BLV[0, :-1], IDS[0, 1:])
    loss = model.train()(IDS, labels=IDS).loss
    torch.testing.assert_close(loss, (alone + expected_BL.mean()) / 2)


def test_the_gradient_of_its_logits_is_that_of_the_formula(pointing, hidden):
    log_first = torch.randn(1, 12, VOCABULARY, generator=torch.Generator().manual_seed(1))
    log_first = log_first.double().log_softmax(-1).requires_grad_()
    wanted = torch.randn(1, 12, VOCABULARY, generator=torch.Generator().manual_seed(2)).double()
    inputs = [log_first, *pointing.parameters()]
    pointed = pointing(hidden, IDS)
    found = pointing.mix_logits(log_first, hidden, pointed)
    p_V = torch.zeros(1, 12, VOCABULARY, dtype=torch.float64).scatter_add(
        -1, pointed.next_BRS.clamp(min=0), pointed.weight_BRS
    )
    g = gate_logits(pointing.gate, hidden, pointed.facts_BRF).sigmoid().unsqueeze(-1)
    g = torch.where(torch.arange(12).view(1, -1, 1) > 0, g, 1.0)
    expected = (g * log_first.exp() + (1 - g) * p_V).log()
    torch.testing.assert_close(found, expected)
    gradients, theirs = (
        torch.autograd.grad((each * wanted).sum(), inputs, retain_graph=True)
        for each in (found, expected)
    )
    torch.testing.assert_close(gradients, theirs)


def test_a_repeated_text_costs_less_with_it(make_causal_lm):
    """It needs no training for that: it starts where it is of use."""
    torch.manual_seed(0)
    ids = torch.randint(VOCABULARY, (4, 8)).repeat(1, 3)
    model = make_causal_lm(attention_dropout=0.0, pointer_channels=4)
    with_it = model(ids, labels=ids).loss
    model.set_pointer(0)
    assert with_it < model(ids, labels=ids).loss - 1


def test_gradients_reach_all_of_it_and_are_finite(make_causal_lm):
    model = make_causal_lm(attention_dropout=0.0, pointer_channels=4).train()
    model.set_reachable(REACHABLE, POSSIBLE)
    ids = IDS.clone()
    ids[0, 4] = 110  # once only: the pointer gives it nothing
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert all(bool(parameter.grad.any()) for parameter in model.lm.pointer.parameters())


def test_the_proof_of_causality_finds_a_pointer_that_reads_ahead(make_causal_lm, monkeypatch):
    model = make_causal_lm(attention_dropout=0.0, pointer_channels=4)
    model.set_ngrams(count_ngrams(IDS, VOCABULARY, 2))
    report = prove_causality(model, length=12, ids=IDS[0])
    assert report.is_causal, report.real.leak

    def ahead(visible, ids_BL, num_places, rows):
        """Also the place of the token itself, which the next one follows."""
        return torch.ones(1, ids_BL.shape[1], num_places, dtype=torch.bool).tril()

    monkeypatch.setattr(module, "_followed", ahead)
    report = prove_causality(model, length=12, ids=IDS[0])
    assert not report.is_causal
    assert report.real.suffix_change > 0


def test_half_precision_and_autocast_keep_its_weights_whole(make_causal_lm):
    model = make_causal_lm(attention_dropout=0.0, pointer_channels=4)
    expected = model(IDS).logits
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(IDS).logits
    torch.testing.assert_close(rounded.float(), expected, rtol=0, atol=0.5)
    half = model.to(torch.bfloat16)(IDS).logits
    assert half.dtype == torch.bfloat16
    assert bool(half.isfinite().all())


def test_a_long_prompt_points_from_the_tokens_that_are_kept(make_causal_lm, monkeypatch):
    model = make_causal_lm(attention_dropout=0.0, pointer_channels=4)
    model.set_ngrams(count_ngrams(IDS, VOCABULARY, 2))
    whole = model(IDS).logits
    sizes = []
    monkeypatch.setattr(
        module, "_facts", lambda weight, *rest: sizes.append(weight.shape) or FACTS(weight, *rest)
    )
    torch.testing.assert_close(model(IDS, logits_to_keep=1).logits, whole[:, -1:])
    picked = torch.tensor([7, 2])
    torch.testing.assert_close(model(IDS, logits_to_keep=picked).logits, whole[:, picked])
    assert [shape[1] for shape in sizes] == [1, 2]


def test_a_width_below_zero_is_refused(make_causal_lm):
    with pytest.raises(ValueError, match="pointer_channels must be 0 or more, got -1"):
        make_causal_lm(pointer_channels=-1)


def test_what_a_token_sees_must_be_one_answer(make_lm):
    """The pointer has no heads, and nothing that scores are added to."""
    lm = make_lm(pointer_channels=4)
    causal = torch.ones(12, 12, dtype=torch.bool).tril()
    for wrong in (
        torch.stack((causal, torch.eye(12) > 0, causal, causal))[None],
        torch.zeros(1, 1, 12, 12).masked_fill(~causal, -torch.inf),
        causal[None],
    ):
        got = rf"got {wrong.dtype} of shape \({', '.join(map(str, wrong.shape))}\)"
        with pytest.raises(ValueError, match=rf"expected visible of dtype torch.bool.*{got}"):
            lm(IDS, visible=wrong)
    assert torch.allclose(lm(IDS, visible=causal[None, None]), lm(IDS), atol=1e-5)


def test_a_dynamic_cache_is_enough(make_causal_lm):
    """What `KeyValueCache` promises, also of the library without the adapter."""
    lm = make_causal_lm(pointer_channels=4).lm
    lm.set_ngrams(count_ngrams(IDS, VOCABULARY, 3))
    lm.eval()
    cache = DynamicCache()
    parts = [lm(part, cache=cache) for part in IDS.split((5, 7), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), lm(IDS), rtol=0, atol=1e-5)
