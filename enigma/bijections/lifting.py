"""The lifting form of a rotor: four triangular steps whose inverse is exact by construction.

Source: Daubechies and Sweldens, "Factoring Wavelet Transforms into Lifting Steps" (1998). With
the channels in halves (a, b): a += A1 b, b += A2 a, a += A3 b, b += A4 a. Four such steps have
as many parameters as one linear layer of the same width, and determinant 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from enigma.bijections.base import Bijection, TokenContext
from enigma.bijections.exact import exact_add, laid_out

__all__ = ["LiftingConv1x1"]

_NUM_STEPS = 4


class _Steps(nn.Module):
    """The matrices. They are read by a call, as offloaded weights are loaded for calls only."""

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        for k, shape in enumerate(shapes):
            self.register_parameter(str(k), nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every step to zero: the identity."""
        for step in self.parameters():
            nn.init.zeros_(step)

    def forward(self) -> list[nn.Parameter]:
        return list(self.parameters())


class LiftingConv1x1(Bijection):
    """An invertible 1x1 convolution as lifting steps; the identity at the start.

    The inverse subtracts what the forward pass added, in the opposite order. No system is solved,
    so the error does not grow with the condition number of the matrix.

    Args:
        num_channels: width D, at least 2; an odd width makes unequal halves.
        exact: round every step to the grid of exact mode; the inverse is then bit-exact.

    Raises:
        ValueError: for a width below 2.

    Examples:
        >>> rotor = LiftingConv1x1(num_channels=4)
        >>> x = torch.ones(2, 3, 4)
        >>> torch.equal(rotor.inverse(rotor(x)), x)
        True
    """

    def __init__(self, num_channels: int, *, exact: bool = False) -> None:
        super().__init__()
        if num_channels < 2:
            raise ValueError(f"num_channels must be at least 2 to be halved, got {num_channels}")
        self.num_channels = num_channels
        self.exact = exact
        self.widths = [num_channels // 2, num_channels - num_channels // 2]
        first, second = self.widths
        self.steps = _Steps([(first, second), (second, first)] * (_NUM_STEPS // 2))

    def _lift(self, x: Tensor, sign: int) -> Tensor:
        halves = list(torch.split(x, self.widths, dim=-1))
        order = list(enumerate(self.steps()))[::sign]
        with torch.autocast(x.device.type, enabled=False):
            for i, step in order:
                moved, read = i % 2, 1 - i % 2
                source = laid_out(halves[read]) if self.exact else halves[read]
                change = functional.linear(source, step)
                halves[moved] = (
                    exact_add(halves[moved], change, sign)
                    if self.exact
                    else halves[moved] + sign * change
                )
        return torch.cat(halves, dim=-1)

    def _forward(
        self,
        x: Tensor,
        context: TokenContext | None,  # noqa: ARG002 - the same at every token
    ) -> tuple[Tensor, Tensor]:
        """Return `(W x, 0)`, outside autocast."""
        return self._lift(x, 1), x.new_zeros(x.shape[:-1])

    def _inverse(
        self,
        y: Tensor,
        context: TokenContext | None,  # noqa: ARG002 - the same at every token
    ) -> tuple[Tensor, Tensor]:
        """Return `(W^-1 y, 0)`."""
        return self._lift(y, -1), y.new_zeros(y.shape[:-1])
