"""The squared ReLU, with a gradient in one pass.

Source: So et al., "Primer: Searching for Efficient Transformers for Language Modeling" (2021).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["squared_relu"]


class _SquaredReLU(torch.autograd.Function):
    """max(x, 0)^2; the gradient of torch's composed operations takes four passes over memory."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        positive = torch.relu(x)
        return positive.square(), positive

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor | None:
        positive: Tensor
        (positive,) = ctx.saved_tensors
        grad_y, grad_positive = grads
        grad = None
        if grad_y is not None:
            grad = torch.addcmul(positive.new_zeros(()), positive, grad_y, value=2)
        if grad_positive is not None:  # only a second derivative reaches it
            through = grad_positive * (positive > 0)
            grad = through if grad is None else grad + through
        return grad

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, Tensor]:
        (positive,) = ctx.saved_tensors
        return 2 * positive * tangents[0], (positive > 0) * tangents[0]


def squared_relu(x: Tensor) -> Tensor:
    """Return max(x, 0)^2 for floating `x` of any shape.

    Examples:
        >>> squared_relu(torch.tensor([-1.0, 3.0]))
        tensor([0., 9.])
    """
    if not torch.is_grad_enabled():
        return torch.relu(x).square()
    y: Tensor = _SquaredReLU.apply(x)[0]  # type: ignore[no-untyped-call]
    return y
