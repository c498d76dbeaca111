"""Reversible training: the same function and gradients as ordinary autograd, without its memory."""

import copy
from itertools import product

import pytest
import torch
from torch.nn import functional

from enigma.bijections.exact import round_to_grid
from enigma.layers.norm import rms_normalise
from enigma.reversible import CouplingStep, run_steps, run_streams, undo_steps
from enigma.reversible.backward import _FirstPass
from tests.enigma.stored_bytes import stored_bytes

IDS = torch.randint(1, 120, (2, 12), generator=torch.Generator().manual_seed(0))
EXACT = {"exact": True, "rotor_form": "lifting"}
VARIANTS = [
    {},
    {"return_path": "untied", "kernel_size": 3},
    {"return_path": "inverse", "rotor_form": "lifting"},
    {"learnable_plugboard": True, "num_rotors": 0},
    {"use_alibi": False, "num_rev_blocks": 0},
]


def gradients(model, *, autocast=False, passes=1):
    """Return loss and gradients of a model, with the same random numbers in every call."""
    model = copy.deepcopy(model).train()
    torch.manual_seed(3)
    for _ in range(passes):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(IDS, labels=IDS).loss
        loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def largest_difference(grads, expected):
    """Return the largest difference relative to the largest gradient of its parameter."""
    return max(
        float((grads[name] - value).abs().max() / value.abs().max().clamp(min=1e-30))
        for name, value in expected.items()
    )


@pytest.mark.parametrize("memory", ["checkpoint", "reversible"])
@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_equal_those_of_autograd(make_causal_lm, memory, changes, dropout):
    changes = {**changes, "attention_dropout": dropout, "hidden_dropout": dropout}
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        loss, expected = gradients(make_causal_lm(memory="plain", **changes).to(dtype))
        again, grads = gradients(make_causal_lm(memory=memory, **changes).to(dtype))
        assert torch.equal(loss, again)
        assert largest_difference(grads, expected) <= bound


@pytest.mark.parametrize("memory", ["checkpoint", "reversible"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("return_path", ["reversed", "untied", "inverse"])
def test_in_exact_mode_the_gradients_are_the_same_bits(
    make_causal_lm, memory, autocast, return_path
):
    changes = {**EXACT, "return_path": return_path, "kernel_size": 2}
    changes |= {"attention_dropout": 0.2, "hidden_dropout": 0.2}
    _, expected = gradients(make_causal_lm(**changes), autocast=autocast, passes=2)
    _, grads = gradients(make_causal_lm(memory=memory, **changes), autocast=autocast, passes=2)
    assert [name for name in expected if not torch.equal(grads[name], expected[name])] == []


def test_under_bfloat16_the_gradients_are_close(make_causal_lm):
    _, expected = gradients(make_causal_lm(), autocast=True)
    _, grads = gradients(make_causal_lm(memory="reversible"), autocast=True)
    assert largest_difference(grads, expected) <= 2e-2


def test_other_dropout_in_the_recomputation_would_show(make_causal_lm, monkeypatch):
    changes = {"attention_dropout": 0.3, "hidden_dropout": 0.3}
    _, expected = gradients(make_causal_lm(**changes))
    monkeypatch.setattr("torch.set_rng_state", lambda _: None)
    _, grads = gradients(make_causal_lm(memory="reversible", **changes))
    assert largest_difference(grads, expected) > 0.1


def test_frozen_parameters_get_no_gradient(make_causal_lm):
    model = make_causal_lm(memory="reversible").train()
    frozen = model.lm.core.blocks[0].f.network.out.weight
    frozen.requires_grad_(False)
    model(IDS, labels=IDS).loss.backward()
    assert frozen.grad is None
    assert model.lm.core.blocks[1].f.network.out.weight.grad is not None


def test_a_second_backward_pass_gives_the_same(make_causal_lm):
    lm = make_causal_lm(memory="reversible").train().lm
    loss = lm.hidden_states(IDS)[..., :5].square().sum()
    first = torch.autograd.grad(loss, list(lm.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(lm.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_parameter_changed_before_the_backward_pass_is_an_error(make_causal_lm):
    model = make_causal_lm(memory="reversible").train()
    loss = model(IDS, labels=IDS).loss
    with torch.no_grad():
        model.lm.layers[0].mlp_up.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_training_keeps_no_activations(make_causal_lm):
    """What the graph holds does not grow with depth: parameters, and the streams twice."""

    def kept(memory, layers):
        model = make_causal_lm(memory=memory, num_transformer_layers=layers).train()
        return stored_bytes(model, lambda: model.lm.hidden_states(IDS))

    assert kept("reversible", 12) == kept("reversible", 2)
    assert kept("plain", 12) > 3 * kept("plain", 2)


@pytest.mark.parametrize("changes", [{}, EXACT])
def test_the_whole_model_can_be_undone(make_lm, changes):
    lm = make_lm(num_transformer_layers=8, **changes)
    lm = lm if changes else lm.double()
    embedding = lm.embedding(IDS, torch.arange(12))
    x = round_to_grid(embedding) if changes else embedding
    steps = lm.steps(torch.arange(12))
    with torch.no_grad():
        streams = run_streams(steps, (x, x))
        torch.testing.assert_close(run_steps(steps, (x, x)), sum(streams), rtol=0, atol=0)
        back = undo_steps(steps, streams)
    assert not torch.equal(streams[1], x)
    for stream in back:
        error = float((stream - x).abs().max().detach())
        assert error == 0 if changes else error < 1e-12


def test_an_unknown_mode_is_an_error(make_lm):
    with pytest.raises(ValueError, match="memory must be one of"):
        make_lm(memory="none")


def test_the_norm_is_that_of_torch_with_its_derivatives():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    expected = functional.rms_norm(x, (5,), eps=1e-6)
    torch.testing.assert_close(rms_normalise(x), expected, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(rms_normalise, x)
    assert torch.autograd.gradgradcheck(rms_normalise, x)
    half = x.detach().bfloat16()
    assert rms_normalise(half).dtype == torch.bfloat16
    single = x.detach().float()
    for gradients, autocast in product((True, False), repeat=2):
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", enabled=autocast):
            torch.testing.assert_close(rms_normalise(single), expected.float().detach())


@pytest.mark.parametrize("kind", ["cpu", "cuda", "xpu", "mps"])
def test_the_random_numbers_of_every_device_are_repeated(kind, monkeypatch):
    generator = torch.default_generator
    if kind != "cpu":  # stands in for the generator of a device that is not there
        generator, module = torch.Generator(), torch.get_device_module(kind)
        monkeypatch.setattr(module, "get_rng_state", lambda device: generator.get_state())
        monkeypatch.setattr(module, "set_rng_state", lambda to, device: generator.set_state(to))

    def drop(x):
        return x * (torch.rand(x.shape, generator=generator) < 0.5)

    step = CouplingStep((drop, ()), (drop, ()), (0, 1))
    first_pass, x = _FirstPass(step, torch.device(kind), ()), torch.ones(40)
    dropped = [first_pass.first(number, drop, x) for number in range(2)]
    assert not torch.equal(*dropped)
    after = generator.get_state()
    for number in (1, 0):
        assert torch.equal(first_pass.again(number, drop, x), dropped[number])
        assert torch.equal(generator.get_state(), after)
