"""Monotonic rational-quadratic splines, vectorised over every channel.

Source: Durkan et al., "Neural Spline Flows" (2019), equations 4 to 8 and appendix A.1; the
domain is [-bound, bound] with the identity outside (their section 3.1).

Legend: K bins; all tensors share the leading shape (...).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["num_spline_parameters", "spline_forward", "spline_inverse"]

_MIN_BIN = 1e-2
"""Smallest share of the domain that a bin takes."""
_MAX_LOG_SLOPE = 2.0
"""Bound of the log of a knot's slope over that of the flatter of its two bins. In the middle of a
bin of mean slope s between slopes d the curve has the slope 2 s^2 / d: with d free, that is as
flat as 1e-7, and the round trip in float32 was wrong by 0.67 where it is now 4e-4 (what rounding
y alone costs: an inverse in float64 gives the same)."""


def num_spline_parameters(num_bins: int) -> int:
    """Return how many raw numbers describe a spline: K widths, K heights, K - 1 slopes."""
    return 3 * num_bins - 1


class _Bin(NamedTuple):
    """The bin that a value falls into: left knots, sizes and the slopes at both ends."""

    x0: Tensor
    width: Tensor
    y0: Tensor
    height: Tensor
    slope0: Tensor
    slope1: Tensor


def _knots(raw_K: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Return left knots and sizes of the bins, each `(..., K)`."""
    num_bins = raw_K.shape[-1]
    share = _MIN_BIN + (1 - _MIN_BIN * num_bins) * raw_K.softmax(-1)
    size = 2 * bound * share
    left = functional.pad(size.cumsum(-1)[..., :-1], (1, 0)) - bound
    return left, size


def _locate(value: Tensor, raw: Tensor, num_bins: int, bound: float, *, by_output: bool) -> _Bin:
    left_x, width = _knots(raw[..., :num_bins], bound)
    left_y, height = _knots(raw[..., num_bins : 2 * num_bins], bound)
    mean_slope = height / width
    flatter = torch.minimum(mean_slope[..., 1:], mean_slope[..., :-1])
    log_ratio = _MAX_LOG_SLOPE * torch.tanh(raw[..., 2 * num_bins :] / _MAX_LOG_SLOPE)
    # Slope 1 at both ends joins the identity outside smoothly.
    slope = functional.pad(flatter * log_ratio.exp(), (1, 1), value=1.0)
    left = left_y if by_output else left_x
    k = (value.unsqueeze(-1) >= left[..., 1:]).sum(-1, keepdim=True)
    # One gather for all six numbers: six separate ones were the cost of a wide spline.
    table = torch.stack((left_x, width, left_y, height, slope[..., :-1], slope[..., 1:]), dim=-2)
    index = k.unsqueeze(-2).expand(*table.shape[:-1], 1)
    return _Bin(*table.gather(-1, index).squeeze(-1).unbind(-1))


def _log_slope_at(theta: Tensor, b: _Bin) -> Tensor:
    """Return log dy/dx at the relative place `theta` in the bin: equation 5."""
    mean_slope = b.height / b.width
    rest = theta * (1 - theta)
    below = mean_slope + (b.slope0 + b.slope1 - 2 * mean_slope) * rest
    above = b.slope1 * theta.square() + 2 * mean_slope * rest + b.slope0 * (1 - theta).square()
    return 2 * mean_slope.log() + above.log() - 2 * below.log()


def spline_forward(x: Tensor, raw: Tensor, num_bins: int, bound: float) -> tuple[Tensor, Tensor]:
    """Map `x` through a monotonic spline a channel.

    Args:
        x: floating, any shape (...).
        raw: `(..., 3 K - 1)` unconstrained; zeros are the identity.
        num_bins: K, at least 1.
        bound: half the domain; outside it the map is the identity.

    Returns:
        `y` and `log dy/dx` in nats, both of the shape of `x`.
    """
    inside = x.abs() < bound
    clipped = x.clamp(-bound, bound)
    b = _locate(clipped, raw, num_bins, bound, by_output=False)
    theta = ((clipped - b.x0) / b.width).clamp(0, 1)
    mean_slope = b.height / b.width
    rest = theta * (1 - theta)
    above = mean_slope * theta.square() + b.slope0 * rest
    below = mean_slope + (b.slope0 + b.slope1 - 2 * mean_slope) * rest
    y = b.y0 + b.height * above / below
    log_slope = _log_slope_at(theta, b)
    return torch.where(inside, y, x), torch.where(inside, log_slope, torch.zeros_like(x))


def spline_inverse(y: Tensor, raw: Tensor, num_bins: int, bound: float) -> tuple[Tensor, Tensor]:
    """Undo `spline_forward`; returns `x` and `log dx/dy` (equations 6 to 8)."""
    inside = y.abs() < bound
    clipped = y.clamp(-bound, bound)
    bin_ = _locate(clipped, raw, num_bins, bound, by_output=True)
    mean_slope = bin_.height / bin_.width
    risen = clipped - bin_.y0
    curve = bin_.slope0 + bin_.slope1 - 2 * mean_slope
    a = bin_.height * (mean_slope - bin_.slope0) + risen * curve
    b = bin_.height * bin_.slope0 - risen * curve
    c = -mean_slope * risen
    root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
    # This form of the root does not cancel where a is near 0.
    theta = (2 * c / (-b - root)).clamp(0, 1)
    x = bin_.x0 + bin_.width * theta
    log_slope = -_log_slope_at(theta, bin_)
    return torch.where(inside, x, y), torch.where(inside, log_slope, torch.zeros_like(y))
