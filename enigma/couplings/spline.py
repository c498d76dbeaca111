"""Monotonic rational-quadratic splines, fused over every channel.

Source: Durkan et al., "Neural Spline Flows" (2019), equations 4 to 8 and appendix A.1; the
domain is [-bound, bound] with the identity outside (their section 3.1).

In float32 on a CPU a compiled loop does all of it, where numba is installed
(`enigma.couplings.compiled_bend`). Elsewhere memory traffic dominates: a spline has 3 K - 1 raw
parameters for each value. So these lie with the bins in front, where softmax and sums run over
whole rows; only the bin that a value falls into and its two neighbours are read further; and the
gradient is written by hand: a backward pass through each of the operations took three times as
long. Second derivatives, `torch.func` and exports need each of the operations, so for them the
spline is composed of these.

Legend: K bins, M values, P = 3 K - 1 raw parameters; a 2 in a shape is (x, y).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from enigma.couplings.compiled_bend import can_compile, compiled_bend
from enigma.couplings.transforms import Affine, Transform
from enigma.layers.transforms import gradient_by_operations, transforms_active

__all__ = [
    "MAX_LOG_SLOPE",
    "RationalQuadraticSpline",
    "bend",
    "bend_by_table",
    "each_operation_counts",
    "table_of_bins",
]

MAX_LOG_SLOPE = 2.0
"""Bound of the log of a knot's slope over that of the flatter of its two bins. In the middle of a
bin of mean slope s between slopes d the curve has the slope 2 s^2 / d: with d free, that is as
flat as 1e-7, and the round trip in float32 was wrong by 0.67 where it is now 4e-4 (what rounding
y alone costs: an inverse in float64 gives the same)."""


@dataclass(frozen=True)
class RationalQuadraticSpline(Transform):
    """A monotonic spline on [-bound, bound], and the identity outside.

    Its raw parameters are K widths, K heights and K - 1 slopes, and before these the two of an
    `Affine` if there is one. The map and its log-determinant can be differentiated twice; the
    second derivative jumps at the knots.

    Attributes:
        num_bins: K, at least 2 and fewer than 1 / `min_bin`.
        bound: half the domain.
        min_bin: the smallest share of the domain that a bin takes.
        affine: shifts and scales before the spline bends, or None. A spline alone moves nothing
            outside its domain.

    Raises:
        ValueError: for fewer than 2 bins, more than fit the domain, or a domain that is empty or
            not finite.
    """

    num_bins: int = 8
    bound: float = 5.0
    min_bin: float = 1e-2
    affine: Affine | None = None

    def __post_init__(self) -> None:
        if self.num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, got {self.num_bins}")
        if not 0 < self.num_bins * self.min_bin < 1:
            raise ValueError(
                "num_bins * min_bin must be above 0 and below 1, as min_bin is the smallest share "
                f"of a bin, got {self.num_bins} * {self.min_bin}; to fix this: take fewer bins"
            )
        if not 0 < self.bound < inf:
            raise ValueError(f"bound must be above 0 and finite, got {self.bound}")

    @property
    def num_parameters(self) -> int:
        """3 K - 1, and two of an affine map."""
        return self._num_affine + self._num_own

    @property
    def _num_own(self) -> int:
        return 3 * self.num_bins - 1

    @property
    def _num_affine(self) -> int:
        return 0 if self.affine is None else self.affine.num_parameters

    @property
    def min_size(self) -> float:
        """The smallest size of a bin."""
        return 2 * self.bound * self.min_bin

    @property
    def free_size(self) -> float:
        """How much of the domain the softmax distributes, beyond the smallest size of each bin."""
        return 2 * self.bound - self.num_bins * self.min_size

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Map through the spline (equation 4); see the base class."""
        return self._bend(x, raw, inverted=False)

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Map back (equations 6 to 8); see the base class."""
        return self._bend(y, raw, inverted=True)

    def _bend(self, value: Tensor, raw: Tensor, *, inverted: bool) -> tuple[Tensor, Tensor]:
        if not each_operation_counts() and can_compile(value, raw, self):
            return compiled_bend(value, raw, self, inverted=inverted)
        return self.bend_in_operations(value, raw, inverted=inverted)

    def bend_in_operations(
        self, value: Tensor, raw: Tensor, *, inverted: bool
    ) -> tuple[Tensor, Tensor]:
        """Do what `forward` or `inverse` does without the compiled loop, twice differentiable."""
        if self.affine is None:
            return self._bend_alone(value, raw, inverted=inverted)
        channels = value.shape[-1]
        affine = raw[..., : self._num_affine * channels]
        own = raw[..., self._num_affine * channels :]
        if inverted:
            value, log_det = self._bend_alone(value, own, inverted=True)
            value, change = self.affine.inverse(value, affine)
        else:
            value, change = self.affine.forward(value, affine)
            value, log_det = self._bend_alone(value, own, inverted=False)
        return value, log_det + change

    def _bend_alone(self, value: Tensor, raw: Tensor, *, inverted: bool) -> tuple[Tensor, Tensor]:
        raw_PM = raw.reshape(-1, self._num_own, value.shape[-1]).movedim(1, 0)
        raw_PM = raw_PM.reshape(self._num_own, -1)
        if each_operation_counts():
            moved_M, log_slope_M = bend(value.reshape(1, -1), raw_PM, self, inverted=inverted)
        else:
            moved_M, log_slope_M = _Bend.apply(  # type: ignore[no-untyped-call]
                value.reshape(-1), raw_PM, self, inverted
            )
        return moved_M.view(value.shape), log_slope_M.view(value.shape).sum(-1)

    @property
    def numbers(self) -> tuple[float, ...]:
        """Bound, smallest size, what the softmax distributes, and bounds of log-slope and scale."""
        max_log_scale = 1.0 if self.affine is None else self.affine.max_log_scale
        return self.bound, self.min_size, self.free_size, MAX_LOG_SLOPE, max_log_scale


def bend(
    value_ND: Tensor, raw_PD: Tensor, spline: RationalQuadraticSpline, *, inverted: bool
) -> tuple[Tensor, Tensor]:
    """Bend D channels of N vectors, each channel by one spline, in differentiable operations.

    Args:
        value_ND: floating `(N, D)`.
        raw_PD: floating `(P, D)`.
        spline: bins and domain.
        inverted: apply the inverse map.

    Returns:
        Where the values go and the log of the slope there, `(N, D)` each.
    """
    return bend_by_table(value_ND, table_of_bins(raw_PD, spline), spline, inverted=inverted)


def table_of_bins(raw_PD: Tensor, spline: RationalQuadraticSpline) -> Tensor:
    """Return the bins of D splines as a table `(5 K - 1, D)`.

    Its rows are K widths, K heights, K left edges in x and K in y, and K - 1 raw slopes.
    """
    num_bins = spline.num_bins
    share_2KD = raw_PD[: 2 * num_bins].reshape(2, num_bins, -1).softmax(dim=1)
    size_2KD = spline.min_size + spline.free_size * share_2KD
    left_2KD = size_2KD.cumsum(dim=1) - size_2KD - spline.bound
    return torch.cat((size_2KD.flatten(0, 1), left_2KD.flatten(0, 1), raw_PD[2 * num_bins :]))


def bend_by_table(
    value_ND: Tensor, table_TD: Tensor, spline: RationalQuadraticSpline, *, inverted: bool
) -> tuple[Tensor, Tensor]:
    """Do what `bend` does by a table of `table_of_bins`."""
    num_bins = spline.num_bins
    size_2KD, left_2KD = table_TD[: 4 * num_bins].reshape(2, 2, num_bins, -1).unbind()
    clipped_N1D = value_ND.clamp(-spline.bound, spline.bound).unsqueeze(1)
    k_ND = (clipped_N1D >= left_2KD[int(inverted), 1:]).sum(dim=1)
    number = Neighbours.of(k_ND, num_bins)
    places = [
        *((table_2KD, k_ND) for table_2KD in (left_2KD, size_2KD)),
        (size_2KD, number.before),
        (size_2KD, number.after),
    ]
    rows = [table_KD.gather(0, at_ND) for table_2KD, at_ND in places for table_KD in table_2KD]
    slope_KD = table_TD[4 * num_bins :]
    rows += [slope_KD.gather(0, at_ND) for at_ND in (number.before, number.right_knot)]
    return _curve(value_ND, Bin(*rows), k_ND, spline, inverted=inverted)


def each_operation_counts() -> bool:
    """Return whether something beside ordinary autograd looks through the operations."""
    # torch has no public name for what `make_fx` and counters of operations put there.
    watched = torch._C._len_torch_dispatch_stack() > 0  # noqa: SLF001
    return watched or torch.compiler.is_compiling() or transforms_active()


class _Bend(torch.autograd.Function):
    """Where a spline or its inverse takes M values, the log of the slope, and the gradient."""

    @staticmethod
    def forward(
        ctx: Any, value_M: Tensor, raw_PM: Tensor, spline: RationalQuadraticSpline, inverted: bool
    ) -> tuple[Tensor, Tensor]:
        size_2KM, k_M, rows = _look_up(value_M, raw_PM, spline, inverted=inverted)
        ctx.save_for_backward(value_M, raw_PM, size_2KM, k_M, rows)
        ctx.spline, ctx.inverted = spline, inverted
        return _curve(value_M, Bin(*rows.unbind()), k_M, spline, inverted=inverted)

    @staticmethod
    def backward(ctx: Any, *grads_M: Tensor) -> tuple[Tensor | None, ...]:
        value_M, raw_PM, size_2KM, k_M, rows = ctx.saved_tensors
        spline, inverted = ctx.spline, ctx.inverted

        def in_operations(value_M: Tensor, raw_PM: Tensor) -> list[Tensor]:
            outputs = bend(value_M.unsqueeze(0), raw_PM, spline, inverted=inverted)
            return [output.squeeze(0) for output in outputs]

        found = gradient_by_operations(in_operations, (value_M, raw_PM), grads_M)
        if found is not None:
            return *found, None, None
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in (value_M, *rows)]
            outputs = _curve(inputs[0], Bin(*inputs[1:]), k_M, spline, inverted=inverted)
            grad_value_M, *grad_rows = torch.autograd.grad(outputs, inputs, grads_M)
        return grad_value_M, _raw_gradient(Bin(*grad_rows), size_2KM, k_M, spline), None, None


class Bin(NamedTuple):
    """The bin that each value falls into: ten numbers per value, which give the curve there."""

    left_x: Tensor
    left_y: Tensor
    width: Tensor
    height: Tensor
    width_before: Tensor
    height_before: Tensor
    width_after: Tensor
    height_after: Tensor
    raw_slope_left: Tensor
    raw_slope_right: Tensor


class Neighbours(NamedTuple):
    """Numbers of bins and of inner knots, int64 each, around the bins that values fall into.

    At the ends of the domain a bin stands for the neighbour that does not exist. Inner knots have
    the number of the bin on their left: that of `before` is the left knot of `here`.
    """

    before: Tensor
    here: Tensor
    after: Tensor
    right_knot: Tensor

    @classmethod
    def of(cls, k_M: Tensor, num_bins: int) -> Neighbours:
        """Return the neighbours of bins `k_M`, int64 of any shape."""
        return cls(
            (k_M - 1).clamp(min=0),
            k_M,
            (k_M + 1).clamp(max=num_bins - 1),
            k_M.clamp(max=num_bins - 2),
        )


def _look_up(
    value_M: Tensor, raw_PM: Tensor, spline: RationalQuadraticSpline, *, inverted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the bin of each value.

    Returns:
        The sizes of the bins (2, K, M), the number of the bin (M,), and the rows of `Bin` (10, M).
    """
    num_bins, bound = spline.num_bins, spline.bound
    logits_2KM = raw_PM[: 2 * num_bins].view(2, num_bins, -1)
    size_2KM = (logits_2KM - logits_2KM.amax(dim=1, keepdim=True)).exp_()
    size_2KM *= spline.free_size / size_2KM.sum(dim=1, keepdim=True)
    size_2KM += spline.min_size
    left_2KM = torch.empty_like(size_2KM)
    left_2KM[:, 0] = -bound
    # Sums along rows, written out: `cumsum` over the middle dimension takes three times as long.
    for k in range(1, num_bins):
        torch.add(left_2KM[:, k - 1], size_2KM[:, k - 1], out=left_2KM[:, k])
    clipped_M = value_M.clamp(-bound, bound)
    k_M = (clipped_M >= left_2KM[int(inverted), 1:]).sum(dim=0)
    count = len(value_M)
    column_M = torch.arange(count, device=value_M.device)
    before_M, here_M, after_M, right_knot_M = (
        number_M * count + column_M for number_M in Neighbours.of(k_M, num_bins)
    )
    heights = num_bins * count
    in_2M = torch.stack((here_M, here_M + heights))
    around_6M = torch.stack((*in_2M, before_M, before_M + heights, after_M, after_M + heights))
    rows = size_2KM.new_empty(len(Bin._fields), count)
    _take(left_2KM, in_2M, rows[:2])
    _take(size_2KM, around_6M, rows[2:8])
    _take(raw_PM[2 * num_bins :], torch.stack((before_M, right_knot_M)), rows[8:])
    return size_2KM, k_M, rows


def _take(table: Tensor, index: Tensor, out: Tensor) -> None:
    torch.index_select(table.reshape(-1), 0, index.view(-1), out=out.view(-1))


def _curve(
    value: Tensor, bin_: Bin, k: Tensor, spline: RationalQuadraticSpline, *, inverted: bool
) -> tuple[Tensor, Tensor]:
    """Return where values go and the log of the slope there (equations 4 to 8).

    Args:
        value: floating, any shape.
        bin_: the bin of each value.
        k: int64, the number of that bin.
        spline: bins and domain.
        inverted: return the inverse map.
    """
    width, height = bin_.width, bin_.height
    mean_slope = height / width
    # Slope 1 at both ends joins the identity outside smoothly.
    slope0 = _knot(bin_.raw_slope_left, mean_slope, bin_.height_before / bin_.width_before, k == 0)
    slope1 = _knot(
        bin_.raw_slope_right,
        mean_slope,
        bin_.height_after / bin_.width_after,
        k == spline.num_bins - 1,
    )
    inside = value.abs() < spline.bound
    clipped = value.clamp(-spline.bound, spline.bound)
    bend = slope0 + slope1 - 2 * mean_slope
    if inverted:
        risen = clipped - bin_.left_y
        a = height * (mean_slope - slope0) + risen * bend
        b = height * slope0 - risen * bend
        c = -mean_slope * risen
        root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
        # This form of the root does not cancel where a is near 0.
        theta = (2 * c / (-b - root)).clamp(0, 1)
        moved = bin_.left_x + width * theta
    else:
        theta = ((clipped - bin_.left_x) / width).clamp(0, 1)
    rest = theta * (1 - theta)
    below = mean_slope + bend * rest
    if not inverted:
        moved = bin_.left_y + height * (mean_slope * theta.square() + slope0 * rest) / below
    # Equation 5.
    above = slope1 * theta.square() + 2 * mean_slope * rest + slope0 * (1 - theta).square()
    log_slope = (above * (mean_slope / below).square()).log()
    log_slope = -log_slope if inverted else log_slope
    return torch.where(inside, moved, value), log_slope * inside


def _knot(raw: Tensor, mean_slope: Tensor, mean_slope_beyond: Tensor, at_end: Tensor) -> Tensor:
    flatter = torch.minimum(mean_slope, mean_slope_beyond)
    ratio = (MAX_LOG_SLOPE * torch.tanh(raw / MAX_LOG_SLOPE)).exp()
    return (flatter * ratio).masked_fill(at_end, 1.0)


def _raw_gradient(
    grad: Bin, size_2KM: Tensor, k_M: Tensor, spline: RationalQuadraticSpline
) -> Tensor:
    """Carry the gradient of the rows of `Bin` back to the raw parameters, (P, M)."""
    _, num_bins, count = size_2KM.shape
    number = Neighbours.of(k_M, num_bins)
    grad_PM = size_2KM.new_empty(3 * num_bins - 1, count)
    grad_2KM = grad_PM[: 2 * num_bins].view(2, num_bins, count)
    # A left knot is the sum of the sizes before it.
    below_KM = torch.arange(num_bins, device=k_M.device)[:, None] < k_M
    of_x = (grad.left_x, grad.width, grad.width_before, grad.width_after)
    of_y = (grad.left_y, grad.height, grad.height_before, grad.height_after)
    for grad_KM, (of_left, of_size, of_size_before, of_size_after) in zip(
        grad_2KM, (of_x, of_y), strict=True
    ):
        torch.mul(below_KM, of_left, out=grad_KM)
        grad_KM.scatter_add_(0, number.here[None], of_size[None])
        grad_KM.scatter_add_(0, number.before[None], of_size_before[None])
        grad_KM.scatter_add_(0, number.after[None], of_size_after[None])
    # Through the softmax; `free_2KM` is what it distributed, as sizes.
    free_2KM = size_2KM - spline.min_size
    grad_2KM -= (grad_2KM * free_2KM).sum(dim=1, keepdim=True) / spline.free_size
    grad_2KM *= free_2KM
    grad_slopes = grad_PM[2 * num_bins :].zero_()
    grad_slopes.scatter_add_(0, number.before[None], grad.raw_slope_left[None])
    grad_slopes.scatter_add_(0, number.right_knot[None], grad.raw_slope_right[None])
    return grad_PM
