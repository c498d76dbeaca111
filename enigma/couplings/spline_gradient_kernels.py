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
    HERE,
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
    WIDTH_AFTER,
    WIDTH_BEFORE,
    ZERO,
    curve,
    memory,
    move,
    prepare,
)
from enigma.couplings.vector_kernels import Array, Number, compiled, compiled_for

__all__ = ["back_to_bins", "bend_back", "read_gradients"]

_BUILT_ON = "796dd01634d7"
"""Of the two files it imports from, see `spline_kernels.py`."""
# Rows of a block's gradients: of both axes by the left knot, by the sizes of the bin, of the next
# one and of the last one, and by the raw slopes at both ends of the bin.
OF_X, OF_Y, OF_RAW_0, OF_RAW_1 = 0, 4, 8, 9
LEFT, OWN, NEXT, LAST = range(4)
# And by what comes out, the logs of the slopes, and what goes in.
BY_Y, BY_LOG, BY_VALUE, GRADIENTS = range(10, 14)
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
    fact_RJ: Array, j: Number, last: Number, bound: Number, inverted: Number, grad_y: Number,
    grad_log: Number,
) -> tuple[Number, ...]:  # fmt: skip
    """Return the gradients by the value, the left knot, the size of the bin, and what follows.

    The inverse map is the x at which the curve takes the value: its derivatives are those of the
    curve, by the implicit function theorem.
    """
    mean, slope_0, slope_1, theta = curve(fact_RJ, j, last, bound, inverted)
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
        by_0,
        mean,
        fact_RJ[BEFORE, j],
        fact_RJ[RATIO_0, j],
        fact_RJ[TANH_0, j],
        fact_RJ[HERE, j] == ZERO,
    )
    of_1, by_after, by_raw_1 = _of_slope(
        by_1,
        mean,
        fact_RJ[AFTER, j],
        fact_RJ[RATIO_1, j],
        fact_RJ[TANH_1, j],
        fact_RJ[HERE, j] == last,
    )
    by_mean += of_0 + of_1
    by_width -= by_mean * mean / width
    by_height = up * risen + by_mean / width
    return (
        by_value, by_left_x, by_width, up, by_height, by_before, by_after, by_raw_0, by_raw_1
    )  # fmt: skip


@compiled
def read_gradients(
    grad_y_ND: Array, grad_log_N: Array, first: Number, count: Number, grad_GJ: Array
) -> None:
    """Copy the gradients by what a block gives: mapped values, and logs of slopes."""
    channels = grad_y_ND.shape[1]
    n, d = first // channels, first % channels
    for j in range(count):
        grad_GJ[BY_Y, j], grad_GJ[BY_LOG, j] = grad_y_ND[n, d], grad_log_N[n]
        d += 1
        if d == channels:
            n, d = n + 1, 0


@compiled
def back_to_bins(
    fact_RJ: Array, last: Number, bound: Number, inverted: Number, grad_GJ: Array
) -> None:
    """Carry the gradients of a block of splines back to their bins.

    Without a branch, as a compiler turns that into vector instructions.
    """
    for j in range(BLOCK):
        value, left_x, width, left_y, height, before, after, raw_0, raw_1 = _through_curve(
            fact_RJ, j, last, bound, inverted, grad_GJ[BY_Y, j], grad_GJ[BY_LOG, j]
        )
        inside = abs(fact_RJ[VALUE, j]) < bound
        # The mean slopes of the neighbours are height / width; at an end their gradient is 0.
        before, after = before / fact_RJ[WIDTH_BEFORE, j], after / fact_RJ[WIDTH_AFTER, j]
        grad_GJ[OF_X + LEFT, j] = left_x if inside else ZERO
        grad_GJ[OF_X + OWN, j] = width if inside else ZERO
        grad_GJ[OF_X + NEXT, j] = -after * fact_RJ[AFTER, j] if inside else ZERO
        grad_GJ[OF_X + LAST, j] = -before * fact_RJ[BEFORE, j] if inside else ZERO
        grad_GJ[OF_Y + LEFT, j] = left_y if inside else ZERO
        grad_GJ[OF_Y + OWN, j] = height if inside else ZERO
        grad_GJ[OF_Y + NEXT, j] = after if inside else ZERO
        grad_GJ[OF_Y + LAST, j] = before if inside else ZERO
        grad_GJ[OF_RAW_0, j] = raw_0 if inside else ZERO
        grad_GJ[OF_RAW_1, j] = raw_1 if inside else ZERO
        grad_GJ[BY_VALUE, j] = value if inside else grad_GJ[BY_Y, j]


@compiled
def _through_affine(fact_RJ: Array, grad_GJ: Array, grad_PJ: Array) -> None:
    """Carry the gradients by what enters the splines of a block back through the affine map."""
    for j in range(BLOCK):
        by_value, scale = grad_GJ[BY_VALUE, j], fact_RJ[SCALE, j]
        by_log_scale = by_value * fact_RJ[GIVEN, j] * scale + grad_GJ[BY_LOG, j]
        grad_PJ[0, j] = by_value
        grad_PJ[1, j] = by_log_scale * (ONE - fact_RJ[TANH, j] * fact_RJ[TANH, j])
        grad_GJ[BY_VALUE, j] = by_value * scale


@compiled
def _through_inverse_affine(
    fact_RJ: Array, last: Number, bound: Number, grad_GJ: Array, grad_PJ: Array
) -> None:
    """Carry the gradients by values behind the inverse affine map back to what enters it."""
    for j in range(BLOCK):
        moved, _ = move(fact_RJ, j, last, bound, True)
        moved = moved if abs(fact_RJ[VALUE, j]) < bound else fact_RJ[VALUE, j]
        by_moved = grad_GJ[BY_Y, j] / fact_RJ[SCALE, j]
        by_log_scale = -by_moved * (moved - fact_RJ[SHIFT, j]) - grad_GJ[BY_LOG, j]
        grad_PJ[0, j] = -by_moved
        grad_PJ[1, j] = by_log_scale * (ONE - fact_RJ[TANH, j] * fact_RJ[TANH, j])
        grad_GJ[BY_Y, j] = by_moved


@compiled
def _through_softmax(
    size_KJ: Array, here_J: Array, grad_GJ: Array, least: Number, free: Number, grad_KJ: Array,
    mixed_J: Array,
) -> None:  # fmt: skip
    """Carry the gradients by the left knot and by three sizes of bins back to their logits.

    The left knot is the sum of the sizes before it. Row by row, as a compiler turns that into
    vector instructions.
    """
    mixed_J[:] = ZERO
    for k in range(len(size_KJ)):
        at = np.float32(k)
        for j in range(BLOCK):
            by_size = grad_GJ[LEFT, j] if at < here_J[j] else ZERO
            by_size += grad_GJ[OWN, j] if at == here_J[j] else ZERO
            by_size += grad_GJ[LAST, j] if at + ONE == here_J[j] else ZERO
            by_size += grad_GJ[NEXT, j] if at - ONE == here_J[j] else ZERO
            grad_KJ[k, j] = by_size
            mixed_J[j] += by_size * (size_KJ[k, j] - least)
    for k in range(len(size_KJ)):
        for j in range(BLOCK):
            grad_KJ[k, j] = (grad_KJ[k, j] - mixed_J[j] / free) * (size_KJ[k, j] - least)


@compiled
def _of_raw(
    size_KJ: Array, here_J: Array, grad_GJ: Array, shape: Array, grad_PJ: Array, mixed_J: Array
) -> None:
    """Write the gradients by the raw parameters of the splines of a block."""
    bins, least, free = len(size_KJ) // 2, shape[1], shape[2]
    _through_softmax(
        size_KJ[:bins], here_J, grad_GJ[OF_X:OF_Y], least, free, grad_PJ[:bins], mixed_J
    )
    _through_softmax(
        size_KJ[bins:], here_J, grad_GJ[OF_Y:OF_RAW_0], least, free, grad_PJ[bins : 2 * bins],
        mixed_J,
    )  # fmt: skip
    for k in range(bins - 1):
        at = np.float32(k)
        for j in range(BLOCK):
            by_raw = grad_GJ[OF_RAW_0, j] if at + ONE == here_J[j] else ZERO
            by_raw += grad_GJ[OF_RAW_1, j] if at == here_J[j] else ZERO
            grad_PJ[2 * bins + k, j] = by_raw


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
    size_KJ, edge_KJ, fact_RJ, bits = memory(bins)
    last = np.float32(bins - 1)
    grad_PJ = np.empty((lead + 3 * bins - 1, BLOCK), np.float32)
    grad_GJ, mixed_J = np.zeros((GRADIENTS, BLOCK), np.float32), np.zeros(BLOCK, np.float32)
    for first in range(0, x_ND.size, BLOCK):
        count = min(BLOCK, x_ND.size - first)
        prepare(x_ND, raw_NE, lead, first, count, size_KJ, edge_KJ, fact_RJ, bits, shape, inverted)
        read_gradients(grad_y_ND, grad_log_N, first, count, grad_GJ)
        if affine and inverted:
            _through_inverse_affine(fact_RJ, last, shape[0], grad_GJ, grad_PJ)
        back_to_bins(fact_RJ, last, shape[0], inverted, grad_GJ)
        if affine and not inverted:
            _through_affine(fact_RJ, grad_GJ, grad_PJ)
        _of_raw(size_KJ, fact_RJ[HERE], grad_GJ, shape, grad_PJ[lead:], mixed_J)
        n, d = first // channels, first % channels
        for j in range(count):
            grad_x_ND[n, d] = grad_GJ[BY_VALUE, j]
            for p in range(len(grad_PJ)):
                grad_raw_NE[n, p * channels + d] = grad_PJ[p, j]
            d += 1
            if d == channels:
                n, d = n + 1, 0
