"""Monotonic rational-quadratic splines, fused over every channel.

Source: Durkan et al., "Neural Spline Flows" (2019), equations 4 to 8 and appendix A.1; the
domain is [-bound, bound] with the identity outside (their section 3.1).

A spline has 3 K - 1 numbers for each value, and what costs time is to pass over them. So the
numbers lie with the bins in front, where softmax and sums run over whole rows; only the bin that
a value falls into and its two neighbours are looked at further; and the gradient is written by
hand: a backward pass through each of the operations took three times as long.

Legend: K bins, M values, P = 3 K - 1 numbers; a 2 in a shape is (x, y).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "MAX_LOG_SLOPE",
    "Places",
    "SplineMap",
    "curve",
    "num_spline_parameters",
    "spline_forward",
    "spline_inverse",
]

_MIN_BIN = 1e-2
"""Smallest share of the domain that a bin takes."""
MAX_LOG_SLOPE = 2.0
"""Bound of the log of a knot's slope over that of the flatter of its two bins. In the middle of a
bin of mean slope s between slopes d the curve has the slope 2 s^2 / d: with d free, that is as
flat as 1e-7, and the round trip in float32 was wrong by 0.67 where it is now 4e-4 (what rounding
y alone costs: an inverse in float64 gives the same)."""


def num_spline_parameters(num_bins: int) -> int:
    """Return how many raw numbers describe a spline: K widths, K heights, K - 1 slopes."""
    return 3 * num_bins - 1


def spline_forward(x: Tensor, raw: Tensor, num_bins: int, bound: float) -> tuple[Tensor, Tensor]:
    """Map `x` through a monotonic spline a channel.

    Args:
        x: floating `(..., D)`.
        raw: `(..., 3 K - 1, D)` unconstrained; zeros are the identity.
        num_bins: K, at least 2.
        bound: half the domain; outside it the map is the identity.

    Returns:
        `y` and `log dy/dx` in nats, both of the shape of `x`. They can be differentiated once.
    """
    return _apply(x, raw, SplineMap(num_bins, bound, inverted=False))


def spline_inverse(y: Tensor, raw: Tensor, num_bins: int, bound: float) -> tuple[Tensor, Tensor]:
    """Undo `spline_forward`; returns `x` and `log dx/dy` (equations 6 to 8)."""
    return _apply(y, raw, SplineMap(num_bins, bound, inverted=True))


class SplineMap(NamedTuple):
    """Which map: the bins, half the domain, the direction, the least share of a bin."""

    num_bins: int
    bound: float
    inverted: bool
    min_bin: float = _MIN_BIN

    @property
    def least(self) -> float:
        """The smallest size of a bin."""
        return 2 * self.bound * self.min_bin

    @property
    def free(self) -> float:
        """How much of the domain the softmax gives out, once each bin has its least."""
        return 2 * self.bound - self.num_bins * self.least


def _apply(value: Tensor, raw: Tensor, which: SplineMap) -> tuple[Tensor, Tensor]:
    raw_PM = raw.movedim(-2, 0).reshape(num_spline_parameters(which.num_bins), -1)
    moved_M, log_slope_M = _Spline.apply(  # type: ignore[no-untyped-call]
        value.reshape(-1), raw_PM, which
    )
    return moved_M.view(value.shape), log_slope_M.view(value.shape)


class _Spline(torch.autograd.Function):
    """The map of M values, and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, value_M: Tensor, raw_PM: Tensor, which: SplineMap
    ) -> tuple[Tensor, Tensor]:
        size_2KM, k_M, parts = _look_up(value_M, raw_PM, which)
        ctx.save_for_backward(value_M, size_2KM, k_M, parts)
        ctx.which = which
        return curve(value_M, parts.unbind(), k_M, which)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_moved_M: Tensor, grad_log_slope_M: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        value_M, size_2KM, k_M, parts = ctx.saved_tensors
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in (value_M, *parts)]
            outputs = curve(inputs[0], inputs[1:], k_M, ctx.which)
            grad_value_M, *grad_parts = torch.autograd.grad(
                outputs, inputs, (grad_moved_M, grad_log_slope_M)
            )
        return grad_value_M, _raw_gradient(grad_parts, size_2KM, k_M, ctx.which), None


class Places(NamedTuple):
    """A bin and its neighbours, int64 each; at the ends the bin stands for the one that is not."""

    before: Tensor
    here: Tensor
    after: Tensor

    @classmethod
    def of(cls, k_M: Tensor, num_bins: int) -> Places:
        """Return the places of bins `k_M`, int64 of any shape."""
        return cls((k_M - 1).clamp_(min=0), k_M, (k_M + 1).clamp_(max=num_bins - 1))


def _look_up(value_M: Tensor, raw_PM: Tensor, which: SplineMap) -> tuple[Tensor, Tensor, Tensor]:
    """Find the bin of each value.

    Returns:
        The sizes of the bins (2, K, M), the bin (M,), and the ten rows of `curve` (10, M).
    """
    num_bins, bound = which.num_bins, which.bound
    logits_2KM = raw_PM[: 2 * num_bins].view(2, num_bins, -1)
    size_2KM = (logits_2KM - logits_2KM.amax(dim=1, keepdim=True)).exp_()
    size_2KM *= which.free / size_2KM.sum(dim=1, keepdim=True)
    size_2KM += which.least
    left_2KM = torch.empty_like(size_2KM)
    left_2KM[:, 0] = -bound
    # Sums along rows, written out: `cumsum` over the middle dimension takes three times as long.
    for k in range(1, num_bins):
        torch.add(left_2KM[:, k - 1], size_2KM[:, k - 1], out=left_2KM[:, k])
    clipped_M = value_M.clamp(-bound, bound)
    k_M = (clipped_M >= left_2KM[int(which.inverted), 1:]).sum(dim=0)
    places = Places.of(k_M, num_bins)
    count = len(value_M)
    column_M = torch.arange(count, device=value_M.device)
    here_M, before_M, after_M = (
        place * count + column_M for place in (places.here, places.before, places.after)
    )
    heights = num_bins * count
    in_2M = torch.stack((here_M, here_M + heights))
    around_6M = torch.stack((*in_2M, before_M, before_M + heights, after_M, after_M + heights))
    # The inner knots are numbered by the bin on their left.
    last_M = k_M.clamp(max=num_bins - 2) * count + column_M
    parts = size_2KM.new_empty(10, count)
    _take(left_2KM, in_2M, parts[:2])
    _take(size_2KM, around_6M, parts[2:8])
    _take(raw_PM[2 * num_bins :], torch.stack((before_M, last_M)), parts[8:])
    return size_2KM, k_M, parts


def _take(table: Tensor, index: Tensor, out: Tensor) -> None:
    torch.index_select(table.reshape(-1), 0, index.view(-1), out=out.view(-1))


def curve(
    value_M: Tensor, parts: Sequence[Tensor], k_M: Tensor, which: SplineMap
) -> tuple[Tensor, Tensor]:
    """Return where values go and the log of the slope there (equations 4 to 8).

    Args:
        value_M: floating `(M,)`.
        parts: ten rows `(M,)`: left knot (x, y), size (x, y) of the bin, of the one before and of
            the one after, raw slope at both ends.
        k_M: int64 `(M,)`, the bin.
        which: the map.
    """
    x0, y0, width, height, *neighbours, raw0, raw1 = parts
    width_before, height_before, width_after, height_after = neighbours
    mean_slope = height / width
    # Slope 1 at both ends joins the identity outside smoothly.
    slope0 = _knot(raw0, mean_slope, height_before / width_before, k_M == 0)
    slope1 = _knot(raw1, mean_slope, height_after / width_after, k_M == which.num_bins - 1)
    inside = value_M.abs() < which.bound
    clipped = value_M.clamp(-which.bound, which.bound)
    bend = slope0 + slope1 - 2 * mean_slope
    if which.inverted:
        risen = clipped - y0
        a = height * (mean_slope - slope0) + risen * bend
        b = height * slope0 - risen * bend
        c = -mean_slope * risen
        root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
        # This form of the root does not cancel where a is near 0.
        theta = (2 * c / (-b - root)).clamp(0, 1)
        moved = x0 + width * theta
    else:
        theta = ((clipped - x0) / width).clamp(0, 1)
    rest = theta * (1 - theta)
    below = mean_slope + bend * rest
    if not which.inverted:
        moved = y0 + height * (mean_slope * theta.square() + slope0 * rest) / below
    # Equation 5.
    above = slope1 * theta.square() + 2 * mean_slope * rest + slope0 * (1 - theta).square()
    log_slope = (above * (mean_slope / below).square()).log()
    log_slope = -log_slope if which.inverted else log_slope
    return torch.where(inside, moved, value_M), log_slope * inside


def _knot(raw: Tensor, mean_slope: Tensor, mean_slope_beyond: Tensor, at_end: Tensor) -> Tensor:
    flatter = torch.minimum(mean_slope, mean_slope_beyond)
    ratio = (MAX_LOG_SLOPE * torch.tanh(raw / MAX_LOG_SLOPE)).exp()
    return torch.where(at_end, 1.0, flatter * ratio)


def _raw_gradient(
    grad_parts: list[Tensor], size_2KM: Tensor, k_M: Tensor, which: SplineMap
) -> Tensor:
    """Carry the gradient of the ten rows back to the raw numbers, (P, M)."""
    _, num_bins, count = size_2KM.shape
    places = Places.of(k_M, num_bins)
    grad_PM = size_2KM.new_empty(num_spline_parameters(num_bins), count)
    grad_2KM = grad_PM[: 2 * num_bins].view(2, num_bins, count)
    # A left knot is the sum of the sizes before it.
    below_KM = torch.arange(num_bins, device=k_M.device)[:, None] < k_M
    for axis in range(2):
        grad_KM = grad_2KM[axis]
        torch.mul(below_KM, grad_parts[axis], out=grad_KM)
        for row, place_M in enumerate((places.here, places.before, places.after), start=1):
            grad_KM.scatter_add_(0, place_M[None], grad_parts[2 * row + axis][None])
    # Through the softmax; `free_2KM` is what it says, as a size.
    free_2KM = size_2KM - which.least
    grad_2KM -= (grad_2KM * free_2KM).sum(dim=1, keepdim=True) / which.free
    grad_2KM *= free_2KM
    grad_slopes = grad_PM[2 * num_bins :].zero_()
    grad_slopes.scatter_add_(0, places.before[None], grad_parts[8][None])
    grad_slopes.scatter_add_(0, k_M.clamp(max=num_bins - 2)[None], grad_parts[9][None])
    return grad_PM
