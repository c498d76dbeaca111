"""How rotors step: an odometer over the token index, and the cyclic shift of the channels.

Legend: G texts that share their indices, L tokens, D channels, P positions, R rotors.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

__all__ = ["odometer", "shift_channels"]


def odometer(index: Tensor, num_rotors: int, positions: int) -> list[Tensor]:
    """Return the position of every rotor at every token.

    Rotor k moves once every `positions ** k` tokens, like the wheels of an odometer: a setting
    returns after `positions ** num_rotors` tokens.

    Args:
        index: int64 token indices of any shape, from 0.
        num_rotors: number of rotors, R.
        positions: positions of one rotor, P.

    Returns:
        R int64 tensors of the shape of `index`, each in [0, P).

    Examples:
        >>> [wheel.tolist() for wheel in odometer(torch.arange(5), num_rotors=2, positions=2)]
        [[0, 1, 0, 1, 0], [0, 0, 1, 1, 0]]
    """
    wheels = []
    for _ in range(num_rotors):
        wheels.append(index.remainder(positions))
        index = index.div(positions, rounding_mode="floor")
    return wheels


class _BlockShift(torch.autograd.Function):
    """A permutation of channel blocks; its gradient is the opposite shift, not a scatter-add."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x_GLD: Tensor, shift_L: Tensor, positions: int) -> Tensor:
        num_groups, length, num_channels = x_GLD.shape
        block_P = torch.arange(positions, device=x_GLD.device)
        first_row_L1 = torch.arange(length, device=x_GLD.device).unsqueeze(1) * positions
        row_LP = first_row_L1 + (block_P + shift_L.unsqueeze(1)).remainder(positions)
        # Rows of blocks with one index for all groups: five times as fast as advanced indexing.
        blocks = x_GLD.reshape(num_groups, length * positions, num_channels // positions)
        return blocks.index_select(1, row_LP.flatten()).view(x_GLD.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, shift_L, ctx.positions = inputs
        ctx.save_for_backward(shift_L)
        ctx.save_for_forward(shift_L)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (shift_L,) = ctx.saved_tensors
        return _shift_groups(grads[0], -shift_L, ctx.positions), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (shift_L,) = ctx.saved_tensors
        return _shift_groups(tangents[0], shift_L, ctx.positions)


def _shift_groups(x_GLD: Tensor, shift_L: Tensor, positions: int) -> Tensor:
    if not torch.is_grad_enabled():
        return _BlockShift.forward(x_GLD, shift_L, positions)
    y_GLD: Tensor = _BlockShift.apply(x_GLD, shift_L, positions)  # type: ignore[no-untyped-call]
    return y_GLD


def shift_channels(x: Tensor, shift: Tensor, positions: int) -> Tensor:
    """Shift the channels of every token cyclically by its own number of blocks.

    Channel block j of the result is block `(j + shift) mod positions` of the input.

    Args:
        x: `(..., L, D)` with D divisible by `positions`.
        shift: int64 `(L,)`, or of more dimensions that broadcast to `x.shape[:-1]`; negative
            shifts back.
        positions: number of blocks, P.

    Returns:
        A tensor of the shape of `x`.

    Examples:
        >>> shift_channels(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([1]), 2)
        tensor([[2., 3., 0., 1.]])
    """
    num_groups = prod(x.shape[:-2])  # `len` and `numel` would fix a size in an export
    if shift.ndim > 1:  # every text has its own indices: one long text for the gather
        shift, num_groups = shift.expand(x.shape[:-1]).reshape(-1), 1
    x_GLD = x.reshape(num_groups, shift.shape[0], x.shape[-1])
    return _shift_groups(x_GLD, shift, positions).view(x.shape)
