"""One monotonic spline per channel, the same for every vector: it makes marginals normal.

A coupling bends a channel by a function of the other half; the marginal distribution of a channel
needs no network. Source: Chen and Gopinath, "Gaussianization" (2000), section 3; the curve is
that of `enigma.couplings.spline`.

Legend: N vectors, D channels, K bins; a 2 in a shape is (x, y).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from enigma.bijections.constant_weights import FormsOnce
from enigma.couplings.compiled_bend import can_look_up, look_up_and_bend
from enigma.couplings.spline import (
    MAX_LOG_SLOPE,
    RationalQuadraticSpline,
    bend_by_table,
    each_operation_counts,
    table_of_bins,
)

__all__ = ["ChannelSplines"]

_OUTERMOST_KNOT = 2.4
"""In standard deviations of the normal; beyond it lies less than one value in a hundred."""
_MIN_BIN = 1e-3
"""Of the domain: narrower than in a coupling, since data may be clumped."""


class ChannelSplines(FormsOnce):
    """Bend every channel by a spline of its own; the identity at the start.

    Args:
        num_channels: D.
        num_bins: bins of each spline, K, 2 to 999.
        bound: half the domain; outside it the map is the identity.

    Raises:
        ValueError: for a spline of one bin or of too many.

    Examples:
        >>> splines = ChannelSplines(2)
        >>> data_ND = torch.distributions.Exponential(1.0).sample((4000, 2)) - 1
        >>> splines.fit(data_ND)
        >>> bent_ND = splines(data_ND)[0].detach()
        >>> [round(float(q)) for q in bent_ND.quantile(torch.tensor([0.16, 0.84]))]
        [-1, 1]
    """

    def __init__(self, num_channels: int, num_bins: int = 32, bound: float = 5.0) -> None:
        super().__init__()
        self.spline = RationalQuadraticSpline(num_bins, bound, _MIN_BIN)
        self.raw = nn.Parameter(torch.zeros(self.spline.num_parameters, num_channels))

    @torch.no_grad()
    def fit(self, data_ND: Tensor) -> None:
        """Start where quantiles of each channel go to those of the standard normal.

        Args:
            data_ND: floating `(N, D)`, standardised; what lies out of the domain stays there.
        """
        knot_y = torch.linspace(
            -_OUTERMOST_KNOT, _OUTERMOST_KNOT, self.spline.num_bins - 1, dtype=torch.float64
        )
        rank = 0.5 * (1 + torch.erf(knot_y / math.sqrt(2))) * (len(data_ND) - 1)
        knot_x_KD = data_ND.double().sort(dim=0).values[rank.round().long().to(data_ND.device)]
        knot_y_KD = knot_y.to(data_ND.device)[:, None].expand_as(knot_x_KD)
        size_2KD = torch.stack([self._sizes(knot_KD) for knot_KD in (knot_x_KD, knot_y_KD)])
        slope_KD = size_2KD[1] / size_2KD[0]
        flatter = torch.minimum(slope_KD[:-1], slope_KD[1:])
        # The harmonic mean of two slopes keeps the curve between them (Fritsch and Butland, 1984).
        ratio = 2 * slope_KD[:-1] * slope_KD[1:] / slope_KD.unfold(0, 2, 1).sum(-1) / flatter
        raw_slope = MAX_LOG_SLOPE * torch.atanh(ratio.log() / MAX_LOG_SLOPE)
        logits_2KD = ((size_2KD - self.spline.min_size) / self.spline.free_size).log()
        self.raw.copy_(torch.cat((logits_2KD.flatten(0, 1), raw_slope)))

    def forward(self, x: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return `y` `(..., D)` and `log |det dy/dx|` `(...)` in nats of `x` `(..., D)`."""
        x_ND = x.reshape(-1, self.raw.shape[1])
        table_TD = self.formed_once("table", lambda: table_of_bins(self.raw, self.spline), self.raw)
        if not each_operation_counts() and can_look_up(x_ND, table_TD, self.spline):
            y_ND, log_slope_N = look_up_and_bend(
                x_ND, table_TD, self.spline, self._by_table, inverted=inverse
            )
        else:
            y_ND, log_slope_N = self._by_table(x_ND, table_TD, inverted=inverse)
        return y_ND.view(x.shape), log_slope_N.view(x.shape[:-1])

    def _by_table(self, x_ND: Tensor, table_TD: Tensor, *, inverted: bool) -> tuple[Tensor, Tensor]:
        y_ND, log_slope_ND = bend_by_table(x_ND, table_TD, self.spline, inverted=inverted)
        return y_ND, log_slope_ND.sum(dim=-1)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `forward`; the log-determinant is the inverse's."""
        x: tuple[Tensor, Tensor] = self(y, inverse=True)
        return x

    def _sizes(self, inner_KD: Tensor) -> Tensor:
        """Return the sizes of the bins between inner knots, none of which is too small."""
        spline = self.spline
        end_1D = torch.full_like(inner_KD[:1], spline.bound)
        knots_KD = torch.cat((-end_1D, inner_KD.clamp(-spline.bound, spline.bound), end_1D))
        # A bin that is all but empty gets a thousandth of what is distributed.
        free_KD = (knots_KD.diff(dim=0) - spline.min_size).clamp(min=1e-3 * spline.free_size)
        return spline.min_size + spline.free_size * free_KD / free_KD.sum(dim=0)
