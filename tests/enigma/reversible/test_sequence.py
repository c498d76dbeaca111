"""Pairs of networks that a user brings: gradients, inverse, memory, random numbers, sharing."""

import copy

import pytest
import torch
from torch import nn

from enigma.reversible import ReversibleSequence


def network(channels_in, channels_out, dropout=0.0):
    return nn.Sequential(
        nn.LayerNorm(channels_in),
        nn.Linear(channels_in, 6),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Linear(6, channels_out),
    )


def sequence(num_pairs=4, *, tied=False, dropout=0.0):
    torch.manual_seed(0)
    pairs = [(network(3, 5, dropout), network(5, 3, dropout)) for _ in range(num_pairs)]
    return ReversibleSequence([*pairs, *pairs[::-1]] if tied else pairs).double()


def gradients(model, memory, streams):
    model = copy.deepcopy(model)
    model.memory = memory
    streams = [x.clone().requires_grad_() for x in streams]
    torch.manual_seed(1)
    y1, y2 = model(*streams)
    loss = (y1.sin().sum() + y2.square().mean()) * 2
    return torch.autograd.grad(loss, [*streams, *model.parameters()])


@pytest.fixture
def streams():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(7, n, generator=generator, dtype=torch.float64) for n in (5, 3)]


@pytest.mark.parametrize("memory", ["checkpoint", "reversible"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_are_those_of_autograd(memory, tied, dropout, streams):
    model = sequence(tied=tied, dropout=dropout)
    for grad, expected in zip(
        gradients(model, memory, streams), gradients(model, "plain", streams), strict=True
    ):
        torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12)


def test_the_inverse_undoes_it(streams):
    model = sequence()
    with torch.no_grad():
        back = model.inverse(*model(*streams))
    for stream, again in zip(streams, back, strict=True):
        torch.testing.assert_close(again, stream, rtol=0, atol=1e-13)


@pytest.mark.parametrize("tied", [False, True])
def test_memory_does_not_grow_with_depth(tied, streams):
    def stored(memory, num_pairs):
        model = sequence(num_pairs, tied=tied)
        model.memory = memory
        parameters, sizes = {p.data_ptr() for p in model.parameters()}, {}

        def pack(x):
            if x.data_ptr() not in parameters:
                sizes[x.data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            outputs = model(*streams)
        assert outputs[0].requires_grad
        return sum(sizes.values())

    assert stored("reversible", 20) == stored("reversible", 2) == 8 * 7 * (5 + 3)
    assert stored("plain", 20) > 5 * stored("plain", 2)


def test_without_gradients_nothing_is_prepared(streams, monkeypatch):
    expected = sequence()(*streams)
    monkeypatch.setattr(torch, "get_rng_state", None)
    with torch.no_grad():
        assert torch.equal(sequence()(*streams)[0], expected[0])


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="at least one pair of networks, got none"):
        ReversibleSequence([])
    with pytest.raises(ValueError, match=r"expected pairs \(f, g\) of networks, got"):
        ReversibleSequence([(nn.Identity(), nn.Identity(), nn.Identity())])
    with pytest.raises(ValueError, match="memory must be one of"):
        ReversibleSequence([(nn.Identity(), nn.Identity())], memory="none")


@pytest.mark.parametrize("memory", ["plain", "reversible"])
@pytest.mark.parametrize("narrow", [0, 1])
def test_a_network_that_would_be_broadcast_is_refused(memory, narrow):
    pair = [nn.Linear(4, 1 if narrow == number else 4) for number in range(2)]
    model = ReversibleSequence([pair], memory=memory)
    for run in (model, model.inverse):
        with pytest.raises(ValueError, match=r"expected a branch that returns \(3, 4\).*\(3, 1\)"):
            run(torch.ones(3, 4), torch.ones(3, 4))


def halve(parameter, calls):
    return parameter.register_hook(lambda grad: (calls.append(parameter), 0.5 * grad)[1])


def clip(parameter, calls):
    return parameter.register_hook(
        lambda grad: (calls.append(parameter), grad.clamp(-0.01, 0.01))[1]
    )


def halve_when_summed(parameter, calls):
    def hook(parameter):
        calls.append(parameter)
        parameter.grad.mul_(0.5)

    return parameter.register_post_accumulate_grad_hook(hook)


@pytest.mark.parametrize("register", [halve, clip, halve_when_summed])
@pytest.mark.parametrize("tied", [False, True])
def test_hooks_of_parameters_run_once_on_the_whole_gradient(register, tied, streams):
    grads = {}
    for memory in ("plain", "reversible"):
        model, calls = sequence(tied=tied), []
        model.memory = memory
        handles = [register(parameter, calls) for parameter in model.parameters()]
        for _ in range(2):  # the hooks are still there the second time
            calls.clear()
            model.zero_grad()
            sum(y.sin().sum() for y in model(*streams)).backward()
            assert sorted(map(id, calls)) == sorted(map(id, model.parameters()))
        grads[memory] = [parameter.grad for parameter in model.parameters()]
        for handle in handles:
            handle.remove()
        calls.clear()
        sum(y.sum() for y in model(*streams)).backward()
        assert not calls
    torch.testing.assert_close(grads["reversible"], grads["plain"], rtol=0, atol=1e-12)


def test_hooks_of_parameters_outlive_a_failed_backward_pass(streams):
    model, calls = sequence(), []
    handle = halve(next(model.parameters()), calls)
    broken = model(*streams)[0].sum()
    failing = model.pairs[0][0][0].register_full_backward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        broken.backward()
    failing.remove()
    calls.clear()
    sum(y.sum() for y in model(*streams)).backward()
    assert len(calls) == 1
    handle.remove()
