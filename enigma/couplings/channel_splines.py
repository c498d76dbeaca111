"""One monotonic spline a channel, the same for every vector: what carries marginals to normal.

A coupling bends a channel by what the other half says; how a channel is spread by itself need not
be asked of a network. Source: Chen and Gopinath, "Gaussianization" (2000), section 3; the curve is
that of `enigma.couplings.spline`.

Legend: N vectors, D channels, M = N D values, K bins; a 2 in a shape is (x, y).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from enigma.couplings.spline import MAX_LOG_SLOPE, Places, SplineMap, curve, num_spline_parameters

__all__ = ["ChannelSplines"]

_OUTERMOST_KNOT = 2.4
"""In standard deviations of the normal; beyond it lies less than one value in a hundred."""
_MIN_BIN = 1e-3
"""Of the domain: narrower than in a coupling, since data may be clumped."""


class ChannelSplines(nn.Module):
    """Bend every channel by a spline of its own; the identity at the start.

    Args:
        num_channels: D.
        num_bins: bins of each spline, K, at least 2.
        bound: half the domain; outside it the map is the identity.

    Raises:
        ValueError: for a spline of one bin.

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
        if num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, got {num_bins}")
        self.num_bins = num_bins
        self.bound = bound
        self.raw = nn.Parameter(torch.zeros(num_spline_parameters(num_bins), num_channels))

    @torch.no_grad()
    def fit(self, data_ND: Tensor) -> None:
        """Start where quantiles of each channel go to those of the standard normal.

        Args:
            data_ND: floating `(N, D)`, standardised; what lies out of the domain stays there.
        """
        knot_y = torch.linspace(
            -_OUTERMOST_KNOT, _OUTERMOST_KNOT, self.num_bins - 1, dtype=torch.float64
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
        which = self._map(inverted=False)
        logits_2KD = ((size_2KD - which.least) / which.free).log()
        self.raw.copy_(torch.cat((logits_2KD.flatten(0, 1), raw_slope)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `y` `(..., D)` and `log |det dy/dx|` `(...)` in nats of `x` `(..., D)`."""
        return self._bend(x, inverted=False)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `forward`; the log-determinant is the inverse's."""
        return self._bend(y, inverted=True)

    def _map(self, *, inverted: bool) -> SplineMap:
        return SplineMap(self.num_bins, self.bound, inverted, _MIN_BIN)

    def _sizes(self, inner_KD: Tensor) -> Tensor:
        """Sizes of the bins between inner knots, none of which is too small."""
        which = self._map(inverted=False)
        end_1D = torch.full_like(inner_KD[:1], self.bound)
        knots_KD = torch.cat((-end_1D, inner_KD.clamp(-self.bound, self.bound), end_1D))
        # A bin that is all but empty gets a thousandth of what is given out.
        free_KD = (knots_KD.diff(dim=0) - which.least).clamp(min=1e-3 * which.free)
        return which.least + which.free * free_KD / free_KD.sum(dim=0)

    def _bend(self, value: Tensor, *, inverted: bool) -> tuple[Tensor, Tensor]:
        which = self._map(inverted=inverted)
        num_bins, num_channels = self.num_bins, self.raw.shape[1]
        share_2KD = self.raw[: 2 * num_bins].view(2, num_bins, -1).softmax(dim=1)
        size_2KD = which.least + which.free * share_2KD
        left_2KD = size_2KD.cumsum(dim=1) - size_2KD - self.bound
        value_ND = value.reshape(-1, num_channels)
        inner_DK = left_2KD[int(inverted), 1:].detach().T.contiguous()
        k_ND = torch.searchsorted(inner_DK, value_ND.T.contiguous(), right=True).T
        column_D = torch.arange(num_channels, device=value.device)
        places = Places.of(k_ND, num_bins)

        def take(table_KD: Tensor, place_ND: Tensor) -> Tensor:
            return table_KD.flatten().take(place_ND * num_channels + column_D).flatten()

        tables = [(left_2KD, places.here), (size_2KD, places.here)]
        tables += [(size_2KD, places.before), (size_2KD, places.after)]
        parts = [take(table_2KD[axis], place) for table_2KD, place in tables for axis in range(2)]
        slopes_KD = self.raw[2 * num_bins :]
        parts += [take(slopes_KD, place) for place in (places.before, k_ND.clamp(max=num_bins - 2))]
        moved_M, log_slope_M = curve(value_ND.flatten(), parts, k_ND.flatten(), which)
        log_det = log_slope_M.view(value.shape).sum(dim=-1)
        return moved_M.view(value.shape), log_det
