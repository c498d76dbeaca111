"""The loss head of torch 2.13, and what takes its place before: equal losses and gradients."""

import pytest
import torch
from torch.nn import functional

from enigma.layers import linear_cross_entropy as module
from enigma.layers.linear_cross_entropy import chunk_tokens, linear_cross_entropy


def value_and_gradients(reduction):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((23, 5), (11, 5))
    )
    target = torch.randint(11, (23,), generator=generator)
    target[[2, 7, 22]] = -100
    loss = linear_cross_entropy(hidden, weight, target, reduction=reduction)
    gradients = torch.autograd.grad(
        (loss * torch.arange(1.0, loss.numel() + 1)).sum(), [hidden, weight]
    )
    expected = functional.cross_entropy(hidden @ weight.T, target, reduction=reduction)
    return [loss, *gradients], expected


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk", [4, 23, 100])
def test_older_versions_of_torch_get_the_same(monkeypatch, reduction, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    new, expected = value_and_gradients(reduction)
    monkeypatch.delattr(functional, "linear_cross_entropy", raising=False)
    old, _ = value_and_gradients(reduction)
    torch.testing.assert_close(old[0].view_as(expected), expected, rtol=0, atol=1e-12)
    for one, two in zip(new, old, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_in_half_precision_a_long_text_costs_what_it_costs(dtype, reduction):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in ((20_000, 8), (40, 8))]
    hidden, weight = (part.to(dtype).requires_grad_() for part in made)
    wide = [part.detach().double().requires_grad_() for part in (hidden, weight)]
    target = torch.randint(40, (20_000,), generator=generator)
    loss = linear_cross_entropy(hidden, weight, target, reduction=reduction)
    expected = functional.cross_entropy(wide[0] @ wide[1].T, target, reduction=reduction)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    gradients = torch.autograd.grad(loss, [hidden, weight])
    for got, right in zip(gradients, torch.autograd.grad(expected, wide), strict=True):
        assert got.dtype == dtype
        assert (got.double() - right).norm() < 0.01 * right.norm()


# torch 2.13 scripts its own formulas for `jacfwd`.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("old", [False, True])
def test_it_has_derivatives_inside_transforms(monkeypatch, transform, reduction, old):
    monkeypatch.setattr(module, "_CHUNK", 4)
    if old:
        monkeypatch.delattr(functional, "linear_cross_entropy", raising=False)
    hidden, weight = torch.randn(2, 7, 5, dtype=torch.float64)
    target = torch.tensor([1, 4, -100, 0, 6, 6, -100])
    found = transform(
        lambda h, w: linear_cross_entropy(h, w, target, reduction=reduction), argnums=(0, 1)
    )(hidden, weight)
    expected = torch.autograd.functional.jacobian(
        lambda h, w: functional.cross_entropy(h @ w.T, target, reduction=reduction),
        (hidden, weight),
    )
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_a_gpu_gets_larger_chunks():
    assert chunk_tokens(torch.device("cuda")) == 4096
    assert chunk_tokens(torch.device("cpu")) == 256
