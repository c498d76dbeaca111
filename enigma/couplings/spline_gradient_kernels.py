"""The gradient of the compiled spline of `enigma.couplings.spline_kernels`, written by hand.

Legend: see there.
"""

from __future__ import annotations

import numpy as np

from enigma.couplings.spline_kernels import (
    AFTER,
    BEFORE,
    BLOCK,
    GIVEN,
    HALF,
    HEIGHT,
    INPUTS,
    ONE,
    RATIO_0,
    RATIO_1,
    SCALE,
    SHIFT,
    TANH,
    TANH_0,
    TANH_1,
    TWO,
    VALUE,
    WIDTH,
    ZERO,
    curve,
    memory,
    move,
    prepare,
)
from enigma.couplings.vector_kernels import Array, Number, compiled, compiled_for

__all__ = ["bend_back"]

_BUILT_ON = "d87bb6ed7240"
"""Of the two files it imports from, see `spline_kernels.py`."""
_BACK = f"void({INPUTS} float32[:, :], float32[:], float32[:, ::1], float32[:, ::1])"


@compiled
def _of_slope(
    grad: Number, mean: Number, beyond: Number, ratio: Number, tanh: Number, fixed: Number
) -> tuple[Number, Number, Number]:
    """Carry the gradient of a knot's slope back to mean, beyond and the raw value."""
    grad = ZERO if fixed else grad
    raw = grad * min(mean, beyond) * ratio * (ONE - tanh * tanh)
    share = HALF if mean == beyond else (ONE if mean < beyond else ZERO)
    return grad * ratio * share, grad * ratio * (ONE - share), raw


@compiled
def _through_curve(
    fact_RJ: Array, j: Number, at_start: Number, at_end: Number, bound: Number, inverted: Number,
    grad_y: Number, grad_log: Number,
) -> tuple[Number, ...]:  # fmt: skip
    """Return the gradients by the value, the left knot, the size of the bin, and what follows.

    The inverse map is the x at which the curve takes the value: its derivatives are those of the
    curve, by the implicit function theorem.
    """
    mean, slope_0, slope_1, theta = curve(fact_RJ, j, at_start, at_end, bound, inverted)
    width, height = fact_RJ[WIDTH, j], fact_RJ[HEIGHT, j]
    bend = slope_0 + slope_1 - TWO * mean
    rest, other = theta * (ONE - theta), ONE - theta
    below = mean + bend * rest
    risen = (mean * theta * theta + slope_0 * rest) / below
    above = slope_1 * theta * theta + TWO * mean * rest + slope_0 * other * other
    slope = above * (mean / below) * (mean / below)
    of_log = -grad_log if inverted else grad_log
    by_above, by_below = of_log / above, -TWO * of_log / below
    by_rest = by_above * TWO * mean + by_below * bend
    by_theta = by_above * TWO * (slope_1 * theta - slope_0 * other)
    by_theta += by_rest * (ONE - TWO * theta)
    if inverted:  # what moves the curve up at x moves x down
        by_value = (grad_y * width + by_theta) / (width * slope)
        by_left_x, up = grad_y, -by_value
        by_width = grad_y * theta
    else:
        by_value = by_theta / width + grad_y * slope
        by_left_x, up = -by_value, grad_y
        by_width = -by_value * theta
    by_numerator = up * height / below
    by_bend = by_below * rest - by_numerator * risen * rest
    by_mean = TWO * of_log / mean + by_above * TWO * rest + by_below - TWO * by_bend
    by_mean += by_numerator * (theta * theta - risen)
    by_0 = by_above * other * other + by_numerator * rest + by_bend
    by_1 = by_above * theta * theta + by_bend
    of_0, by_before, by_raw_0 = _of_slope(
        by_0, mean, fact_RJ[BEFORE, j], fact_RJ[RATIO_0, j], fact_RJ[TANH_0, j], at_start
    )
    of_1, by_after, by_raw_1 = _of_slope(
        by_1, mean, fact_RJ[AFTER, j], fact_RJ[RATIO_1, j], fact_RJ[TANH_1, j], at_end
    )
    by_mean += of_0 + of_1
    by_width -= by_mean * mean / width
    by_height = up * risen + by_mean / width
    return (
        by_value, by_left_x, by_width, up, by_height, by_before, by_after, by_raw_0, by_raw_1
    )  # fmt: skip


@compiled
def _through_softmax(
    size_K: Array, k: Number, by_left: Number, by_before: Number, by_own: Number, by_after: Number,
    least: Number, free: Number, grad_K: Array,
) -> None:  # fmt: skip
    """Carry the gradients by the left knot of bin k and by three sizes back to K logits."""
    mixed = ZERO
    for i in range(len(size_K)):
        by_size = by_left if i < k else ZERO
        if i == k:
            by_size = by_own
        elif i == k - 1:
            by_size += by_before
        elif i == k + 1:
            by_size += by_after
        grad_K[i] = by_size
        mixed += by_size * (size_K[i] - least)
    mixed /= free
    for i in range(len(size_K)):
        grad_K[i] = (grad_K[i] - mixed) * (size_K[i] - least)


@compiled
def _back(
    size_KJ: Array, fact_RJ: Array, j: Number, k: Number, shape: Array, inverted: Number,
    grad_y: Number, grad_log: Number, grad_P: Array,
) -> Number:  # fmt: skip
    """Carry the gradients of one spline back; return that by the value."""
    bins = len(size_KJ) // 2
    grad_P[:] = ZERO
    if not abs(fact_RJ[VALUE, j]) < shape[0]:
        return grad_y
    at_start, at_end = k == 0, k == bins - 1
    value, left_x, width, left_y, height, before, after, raw_0, raw_1 = _through_curve(
        fact_RJ, j, at_start, at_end, shape[0], inverted, grad_y, grad_log
    )
    # The mean slopes of the neighbours are height / width; at an end their gradient is 0.
    before /= size_KJ[max(k - 1, 0), j]
    after /= size_KJ[min(k + 1, bins - 1), j]
    _through_softmax(
        size_KJ[:bins, j], k, left_x, -before * fact_RJ[BEFORE, j], width,
        -after * fact_RJ[AFTER, j], shape[1], shape[2], grad_P[:bins],
    )  # fmt: skip
    _through_softmax(
        size_KJ[bins:, j], k, left_y, before, height, after, shape[1], shape[2],
        grad_P[bins : 2 * bins],
    )  # fmt: skip
    if not at_start:
        grad_P[2 * bins + k - 1] = raw_0
    if not at_end:
        grad_P[2 * bins + k] = raw_1
    return value


@compiled
def _back_with_affine(
    size_KJ: Array, fact_RJ: Array, j: Number, k: Number, shape: Array, inverted: Number,
    grad_y: Number, grad_log: Number, grad_P: Array,
) -> Number:  # fmt: skip
    """Carry the gradients of one spline and its affine map back; return that by the value."""
    bins, scale = len(size_KJ) // 2, fact_RJ[SCALE, j]
    if inverted:
        moved = fact_RJ[VALUE, j]
        if abs(moved) < shape[0]:
            moved, _ = move(fact_RJ, j, k == 0, k == bins - 1, shape[0], inverted)
        by_moved = grad_y / scale
        by_value = _back(size_KJ, fact_RJ, j, k, shape, inverted, by_moved, grad_log, grad_P[2:])
        grad_P[0] = -by_moved
        by_log_scale = -by_moved * (moved - fact_RJ[SHIFT, j]) - grad_log
    else:
        by_value = _back(size_KJ, fact_RJ, j, k, shape, inverted, grad_y, grad_log, grad_P[2:])
        grad_P[0] = by_value
        by_log_scale = by_value * fact_RJ[GIVEN, j] * scale + grad_log
        by_value *= scale
    grad_P[1] = by_log_scale * (ONE - fact_RJ[TANH, j] * fact_RJ[TANH, j])
    return by_value


@compiled_for(_BACK)
def bend_back(
    bins: int, shape: Array, affine: bool, inverted: bool, x_ND: Array, raw_NE: Array,
    grad_y_ND: Array, grad_log_N: Array, grad_x_ND: Array, grad_raw_NE: Array,
) -> None:  # fmt: skip
    """Carry gradients back through `bend_values`.

    Args:
        bins: see `bend_values`, as up to `raw_NE`.
        shape: see there.
        affine: see there.
        inverted: see there.
        x_ND: see there.
        raw_NE: see there.
        grad_y_ND: float32, by the mapped values.
        grad_log_N: float32, by the sums of the logs of the slopes.
        grad_x_ND: float32, gets the gradient by the values.
        grad_raw_NE: float32, gets that by the raw parameters.
    """
    channels, lead = x_ND.shape[1], 2 if affine else 0
    size_KJ, fact_RJ, bin_J, bits = memory(bins)
    grad_P = np.empty(lead + 3 * bins - 1, np.float32)
    for first in range(0, x_ND.size, BLOCK):
        count = min(BLOCK, x_ND.size - first)
        prepare(x_ND, raw_NE, lead, first, count, size_KJ, fact_RJ, bin_J, bits, shape, inverted)
        n, d = first // channels, first % channels
        for j in range(count):
            grad_y, grad_log = grad_y_ND[n, d], grad_log_N[n]
            if affine:
                grad_x_ND[n, d] = _back_with_affine(
                    size_KJ, fact_RJ, j, bin_J[j], shape, inverted, grad_y, grad_log, grad_P
                )
            else:
                grad_x_ND[n, d] = _back(
                    size_KJ, fact_RJ, j, bin_J[j], shape, inverted, grad_y, grad_log, grad_P
                )
            for p in range(len(grad_P)):
                grad_raw_NE[n, p * channels + d] = grad_P[p]
            d += 1
            if d == channels:
                n, d = n + 1, 0
