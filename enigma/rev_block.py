"""The reversible block: two couplings, so that both halves of the stream move.

Source: Gomez et al., "The Reversible Residual Network" (2017), equations 6 and 7:
y1 = x1 + f(x2), y2 = x2 + g(y1); the inverse is x2 = y2 - g(y1), x1 = y1 - f(x2).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from enigma.bijections.base import Bijection, Tokens
from enigma.couplings.coupling import Activation, Coupling, CouplingKind
from enigma.reversible import CouplingStep

__all__ = ["RevBlock"]


class RevBlock(Bijection):
    """Two couplings over the halves of the channels.

    Args:
        num_channels: width D, at least 2; an odd width makes unequal halves.
        coupling: "additive" (the language model), or for a flow "affine", "spline" or
            "affine-spline".
        hidden_channels: width of the coupling networks; None takes 2 D.
        num_hidden_layers: depth of the coupling networks.
        activation: see `CouplingNetwork`.
        normalise: see `CouplingNetwork`.
        kernel_size: taps of a causal convolution over the tokens, see
            `CouplingNetwork`.
        bias: see `CouplingNetwork`.
        residual: see `CouplingNetwork`.
        num_bins: bins of a spline coupling.
        bound: half the domain of a spline coupling.
        exact: see `Coupling`.

    Raises:
        ValueError: for a width below 2, an unknown coupling, or an exact one that is not additive.

    Examples:
        >>> block = RevBlock(num_channels=6, coupling="affine")
        >>> x = torch.ones(2, 3, 6)
        >>> torch.equal(block.inverse(block(x)), x)
        True
    """

    def __init__(
        self,
        num_channels: int,
        coupling: CouplingKind = "additive",
        hidden_channels: int | None = None,
        *,
        num_hidden_layers: int = 1,
        activation: Activation = "relu2",
        normalise: bool = True,
        kernel_size: int = 1,
        bias: bool = False,
        residual: bool = False,
        num_bins: int = 8,
        bound: float = 5.0,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.coupling = coupling
        self.exact = exact
        if num_channels < 2:
            raise ValueError(f"num_channels must be at least 2 to be halved, got {num_channels}")
        self.widths = [num_channels // 2, num_channels - num_channels // 2]
        first, second = self.widths

        def make(moved: int, read: int) -> Coupling:
            return Coupling(
                moved,
                read,
                coupling,
                hidden_channels or 2 * num_channels,
                num_hidden_layers=num_hidden_layers,
                activation=activation,
                normalise=normalise,
                kernel_size=kernel_size,
                bias=bias,
                residual=residual,
                num_bins=num_bins,
                bound=bound,
                exact=exact,
            )

        self.f = make(first, second)
        self.g = make(second, first)

    def forward_with_log_det(
        self,
        x: Tensor,
        tokens: Tokens | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Move the first half, then the second; see the base class for shapes."""
        x1, x2 = torch.split(x, self.widths, dim=-1)
        y1, log_det_f = self.f(x1, x2, tokens)
        y2, log_det_g = self.g(x2, y1, tokens)
        return torch.cat((y1, y2), dim=-1), _total(x, log_det_f, log_det_g)

    def step(self, tokens: Tokens, place: int) -> CouplingStep:
        """Return an additive block as a step over the halves of one stream.

        Args:
            tokens: which tokens the stream holds.
            place: the stream's number.
        """
        return CouplingStep(
            (partial(self.f.numbers, tokens=tokens), (self.f,)),
            (partial(self.g.numbers, tokens=tokens), (self.g,)),
            places=(place,),
            widths=self.widths,
            exact=self.exact,
        )

    def inverse_with_log_det(
        self,
        y: Tensor,
        tokens: Tokens | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Move the second half back, then the first; see the base class for shapes."""
        y1, y2 = torch.split(y, self.widths, dim=-1)
        x2, log_det_g = self.g.inverse(y2, y1, tokens)
        x1, log_det_f = self.f.inverse(y1, x2, tokens)
        return torch.cat((x1, x2), dim=-1), _total(y, log_det_f, log_det_g)


def _total(x: Tensor, *log_dets: Tensor | None) -> Tensor:
    total = x.new_zeros(x.shape[:-1])
    for log_det in log_dets:
        if log_det is not None:
            total = total + log_det
    return total
