"""Attention with dropout on the CPU, and the squared ReLU: values, gradients, random numbers."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional

from enigma.layers.dropped_attention import dropped_attention
from enigma.layers.squared_relu import squared_relu


def draw(length, *, dtype=torch.float64, channels=4):
    """Return queries, keys and values of two texts and three heads."""
    generator = torch.Generator().manual_seed(length)
    shape = (2, 3, length, channels)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("length", [1, 5, 64, 65, 150])
def test_without_dropping_it_is_the_attention_of_torch(length):
    qkv = draw(length)
    expected = functional.scaled_dot_product_attention(*qkv, is_causal=True)
    y = dropped_attention(*qkv, 0.0)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)
    direction = torch.randn_like(y)
    for grad, wanted in zip(
        torch.autograd.grad(y, qkv, direction),
        torch.autograd.grad(expected, qkv, direction),
        strict=True,
    ):
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-12)


def test_the_gradients_are_those_of_what_was_drawn():
    def attend(q, k, v):
        torch.manual_seed(1)
        return dropped_attention(q, k, v, 0.4)

    shortened = [x[:1, :1] for x in draw(67, channels=2)]
    assert torch.autograd.gradcheck(attend, [x.detach().requires_grad_() for x in shortened])


def test_the_share_of_dropped_weights_is_right_and_the_mean_is_kept():
    """With equal scores and the identity as values the output is the weights themselves."""
    length, probability = 128, 0.3
    nothing = torch.zeros(400, 1, length, length)
    torch.manual_seed(0)
    weights = dropped_attention(nothing, nothing, torch.eye(length).expand_as(nothing), probability)
    last = weights[:, 0, -1]
    assert float((last == 0).float().mean()) == pytest.approx(probability, abs=0.01)
    assert float(last.sum(-1).mean()) == pytest.approx(1.0, abs=0.01)
    assert torch.all(weights.triu(1) == 0)
    kept = last[last > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / length / (1 - probability)))


def test_half_precision_is_rounded_once():
    qkv = [x.detach().bfloat16() for x in draw(70)]
    expected = dropped_attention(*[x.float() for x in qkv], 0.0).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = dropped_attention(*qkv, 0.0)
    assert torch.equal(y, expected)


def test_the_squared_relu_is_the_composed_one_with_its_derivatives():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    expected = functional.relu(x).square()
    assert torch.equal(squared_relu(x), expected)
    (grad,) = torch.autograd.grad(squared_relu(x), x, direction)
    (wanted,) = torch.autograd.grad(expected, x, direction)
    assert torch.equal(grad, wanted)
    assert torch.autograd.gradgradcheck(squared_relu, x)


def test_the_second_derivatives_are_those_of_what_was_drawn():
    """Before and after the border of a block of 64 queries."""

    def attend(q, k, v):
        torch.manual_seed(1)
        return dropped_attention(q, k, v, 0.4)[..., 62:67:2, :]

    qkv = [x[:1, :1].detach().requires_grad_() for x in draw(67, channels=1)]
    assert torch.autograd.gradgradcheck(attend, qkv)
    # Where the gradient of the output is a constant, that of the inputs still depends on them.
    direction = torch.ones(1, 1, 3, 1, dtype=torch.float64)
    (grad,) = torch.autograd.grad(attend(*qkv), qkv[0], direction, create_graph=True)
    assert grad.requires_grad


def test_transforms_of_torch_func_see_attention_with_dropout():
    q, k, v = (x.detach() for x in draw(5))
    grad = torch.func.grad(lambda x: dropped_attention(x, k, v, 0.0).sum())(q)
    leaf = q.clone().requires_grad_()
    (expected,) = torch.autograd.grad(dropped_attention(leaf, k, v, 0.0).sum(), leaf)
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12)


# Forward-mode differentiation itself uses it.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_forward_mode_sees_attention_with_dropout():
    q, k, v = (x.detach() for x in draw(5))
    tangent = torch.randn_like(q)

    def attend(x):
        torch.manual_seed(1)
        with forward_ad.dual_level():
            y = dropped_attention(forward_ad.make_dual(x, tangent), k, v, 0.4)
            return tuple(part.clone() for part in forward_ad.unpack_dual(y))

    step = 1e-6
    numeric = (attend(q + step * tangent)[0] - attend(q - step * tangent)[0]) / (2 * step)
    torch.testing.assert_close(attend(q)[1], numeric, rtol=0, atol=1e-8)


def test_no_token_and_no_text_are_attended():
    for shape in ((2, 3, 0, 4), (0, 3, 5, 4)):
        inputs = [torch.zeros(shape, requires_grad=True) for _ in range(3)]
        y = dropped_attention(*inputs, 0.3)
        assert y.shape == shape
        y.sum().backward()
        assert inputs[0].grad.shape == shape
