"""Exact mode: sums on a grid, where float32 adds and subtracts without rounding.

Every number of the stream is a multiple of 2^-14 with absolute value below 1024 = 2^10. That takes
24 bits, the whole significand of a float32. What a network adds is rounded to the grid first, so
y = x + f(x2) is exact and x = y - f(x2) returns the same bits, at any depth. (Networks that
round to integers need this grid too: Hoogeboom et al., "Integer Discrete Flows", 2019.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["GRID", "LIMIT", "GridError", "exact_add", "laid_out", "round_to_grid"]

GRID = 2.0**-14
"""Distance between neighbouring numbers of the stream."""
LIMIT = 1024.0
"""Bound of the stream's absolute value; above it a float32 sum would be rounded."""


class GridError(ValueError):
    """A number of the stream reached the limit of the grid, or is not finite."""


class _RoundToGrid(torch.autograd.Function):
    """Round and pass the gradient through: that of rounding is 0 almost everywhere."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.round(x / GRID) * GRID

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:  # noqa: ARG004 - the signature of autograd
        return tangents[0].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004 - the signature of autograd
        return grads[0]


def round_to_grid(x: Tensor) -> Tensor:
    """Return the nearest multiple of 2^-14, with the gradient of the identity.

    Args:
        x: float32 or float64, any shape.

    Examples:
        >>> float(round_to_grid(torch.tensor(0.1))) * 2**14
        1638.0
    """
    y: Tensor = _RoundToGrid.apply(x)  # type: ignore[no-untyped-call]
    return y


def laid_out(x: Tensor) -> Tensor:
    """Return a contiguous copy of `x` with memory of its own.

    What is subtracted in the inverse must be the same bits that were added. But a half of the
    stream is a view in the forward pass and a whole tensor in the inverse, and the order of the
    sums in a matrix product depends on strides and alignment.
    """
    return x.clone(memory_format=torch.contiguous_format)


def exact_add(x: Tensor, change: Tensor, sign: int = 1) -> Tensor:
    """Return `x + sign * change` with `change` on the grid; undone bit for bit by `-sign`.

    Args:
        x: on the grid.
        change: of the same shape; it is rounded here.
        sign: 1 or -1.

    Raises:
        GridError: if a number reaches the limit of the grid, or is not finite.
        ValueError: in half precision, which cannot hold the grid.
    """
    if x.dtype not in {torch.float32, torch.float64}:
        raise ValueError(
            f"exact mode needs float32 or float64, got {x.dtype}; to fix this: call .float() on "
            "the model"
        )
    y = x + sign * round_to_grid(change)
    largest = y.detach().abs().max() if y.numel() else torch.zeros(())
    if not bool(largest < LIMIT):
        raise GridError(
            f"exact mode needs numbers below {LIMIT:g}, got {largest.item():g} in the stream; to "
            "fix this: lower the learning rate, raise the weight decay, or train with exact=False"
        )
    return y
