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
        self.exact = exact
        self.widths = [num_channels // 2, num_channels - num_channels // 2]
        first, second = self.widths
        shapes = [(first, second), (second, first)] * (_NUM_STEPS // 2)
        self.steps = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in shapes)

    def reset_parameters(self) -> None:
        """Set every step to zero: the identity."""
        for step in self.steps:
            nn.init.zeros_(step)

    def multiply(self, x: Tensor) -> Tensor:
        """Return W x for every token of `x` `(..., D)`, outside autocast."""
        return self._lift(x, 1)

    def solve(self, y: Tensor) -> Tensor:
        """Return W^-1 y for every token of `y` `(..., D)`."""
        return self._lift(y, -1)

    def log_det(self) -> Tensor:
        """Return log |det W| = 0, a scalar."""
        zero: Tensor = self.steps[0].new_zeros(())
        return zero

    def _lift(self, x: Tensor, sign: int) -> Tensor:
        halves = list(torch.split(x, self.widths, dim=-1))
        order = list(enumerate(self.steps))[::sign]
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

    def forward_with_log_det(
        self,
        x: Tensor,
        context: TokenContext | None = None,  # noqa: ARG002 - the same at every token
    ) -> tuple[Tensor, Tensor]:
        """Return `(W x, 0)`; see the base class for shapes."""
        return self.multiply(x), x.new_zeros(x.shape[:-1])

    def inverse_with_log_det(
        self,
        y: Tensor,
        context: TokenContext | None = None,  # noqa: ARG002 - the same at every token
    ) -> tuple[Tensor, Tensor]:
        """Return `(W^-1 y, 0)`; see the base class for shapes."""
        return self.solve(y), y.new_zeros(y.shape[:-1])
