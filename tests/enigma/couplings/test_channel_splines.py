"""Splines of channels: the compiled look-up says what the operations say."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from enigma.bijections.constant_weights import constant_weights
from enigma.couplings import compiled_bend
from enigma.couplings.channel_splines import ChannelSplines

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def looked_up(monkeypatch):
    """How often the loop was called; a test in which it never was has tested nothing."""
    calls = []
    loop = compiled_bend._loop
    monkeypatch.setattr(compiled_bend, "_loop", lambda name: calls.append(name) or loop(name))
    yield
    assert calls


def draw(channels, bins, vectors, *, seed=0):
    torch.manual_seed(seed)
    splines = ChannelSplines(channels, bins)
    torch.nn.init.normal_(splines.raw, std=0.5)
    return splines, 3 * torch.randn(vectors, channels)


def outputs_and_gradients(splines, x, *, inverse):
    x = x.detach().requires_grad_()  # not a clone, which has strides of its own
    y, log_det = splines(x, inverse=inverse)
    weights = torch.linspace(0.5, 2, y.numel()).view(y.shape).to(y)
    total = (weights * y.sin()).sum() + (weights[:, 0] * log_det).sum()
    return y.detach(), log_det.detach(), *torch.autograd.grad(total, (x, splines.raw))


@settings(max_examples=40)
@given(
    channels=st.integers(1, 5),
    bins=st.integers(2, 33),
    vectors=st.integers(1, 150),
    inverse=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_what_the_operations_give_in_float64(channels, bins, vectors, inverse, seed):
    splines, x = draw(channels, bins, vectors, seed=seed)
    found = outputs_and_gradients(splines, x, inverse=inverse)
    wide = copy.deepcopy(splines).double()
    around = [
        outputs_and_gradients(wide, x.double() + step, inverse=inverse)
        for step in (-1e-5, 0.0, 1e-5)
    ]
    for one, below, true, above in zip(found, *around, strict=True):
        # Rounding may put a value on the other side of a knot, where the gradient jumps.
        room = 1e-4 * (1 + true.abs().max()) + (above - below).abs()
        assert ((one.double() - true).abs() <= room).all()


@pytest.mark.parametrize("inverse", [False, True])
def test_there_and_back(inverse):
    splines, x = draw(4, 32, 300)
    y, log_det = splines(x, inverse=inverse)
    again, back = splines(y, inverse=not inverse)
    torch.testing.assert_close(again, x, rtol=0, atol=3e-4)
    torch.testing.assert_close(back, -log_det, rtol=0, atol=3e-3)


@pytest.mark.parametrize("rows", ["all", "one, expanded", "one", "every second"])
def test_threads_and_strides_change_nothing(monkeypatch, rows):
    splines, x = draw(300 if rows == "one" else 3, 8, 500)
    x = {
        "all": x,
        "one": x[:1],
        "every second": x[::2],
        "one, expanded": x[:1].expand(500, -1),
    }[rows]
    alone = outputs_and_gradients(splines, x, inverse=False)
    monkeypatch.setattr(compiled_bend, "_PART", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together = outputs_and_gradients(splines, x, inverse=False)
    again = outputs_and_gradients(splines, x, inverse=False)
    for one, other, third in zip(alone, together, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
        assert torch.equal(other, third)


def test_the_gradient_can_be_differentiated():
    second = []
    for dtype in (torch.float32, torch.float64):
        splines, x = draw(2, 5, 20)
        splines, x = splines.to(dtype), x.to(dtype).requires_grad_()
        y, log_det = splines(x)
        total = y.sin().sum() + log_det.sum()
        first = torch.autograd.grad(total, (x, splines.raw), create_graph=True)
        squares = sum(grad.square().sum() for grad in first)
        second.append(torch.autograd.grad(squares, (x, splines.raw)))
    for one, other in zip(*second, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-2)


def test_what_is_not_a_number_stays_so_and_no_vectors_are_no_work():
    splines, x = draw(3, 8, 4)
    x[1, 2] = torch.nan
    y, log_det = splines(x)
    assert y.isnan().nonzero().tolist() == [[1, 2]]
    assert log_det.isnan().tolist() == [False, True, False, False]
    assert splines(x[:0])[0].shape == (0, 3)


def test_the_table_is_formed_once_while_weights_are_constant_and_anew_afterwards():
    splines, x = draw(3, 8, 4)
    with torch.no_grad():
        with constant_weights():
            before = splines(x)[0]
            splines.raw.data += 1 + torch.randn_like(splines.raw)
            assert torch.equal(splines(x)[0], before)
        assert not torch.equal(splines(x)[0], before)


def test_a_table_of_another_size_is_refused_as_by_the_operations():
    splines, x = draw(3, 8, 4)
    splines(x)
    with pytest.raises((RuntimeError, IndexError)):
        torch.func.functional_call(splines, {"raw": splines.raw[:-1]}, (x,))


def test_what_is_traced_computes_for_other_values():
    splines, x = draw(3, 8, 4)
    splines.requires_grad_(False)
    expected = splines(x + 0.3)
    for one, other in zip(make_fx(splines)(x)(x + 0.3), expected, strict=True):
        torch.testing.assert_close(one, other)
