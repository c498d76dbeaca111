"""The spline of a coupling as one compiled loop, for float32 on a CPU.

In few dimensions the sixty small operations of `enigma.couplings.spline` take most of a flow's
time. Here a block of values goes through all of them while it is in the processor's cache, row by
row and without branches, which a compiler turns into vector instructions. Import it only if numba
is installed; the machine code is cached on disk.

Source: the curve, `enigma.couplings.spline`, whose operations say the same.

Legend: N vectors, D channels, K bins, J values of a block, P = 3 K - 1 raw parameters; row p of
channel d is column p D + d of `raw_NE`.
"""

from __future__ import annotations

import numpy as np

from enigma.couplings.vector_kernels import (
    Array,
    Number,
    compiled,
    compiled_for,
    take_exp,
    take_log,
)

__all__ = ["bend_values", "curve", "memory", "move", "prepare", "take_ratios", "write"]

BLOCK = 64
ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
# Rows of a block's facts: what enters the spline, the number of its bin, where that starts, its
# sizes, widths and slopes of its neighbours, and what the slopes at both ends are made of.
VALUE, HERE, LEFT_X, LEFT_Y, WIDTH, HEIGHT = range(6)
WIDTH_BEFORE, WIDTH_AFTER, BEFORE, AFTER, RAW_0, RAW_1, RATIO_0, RATIO_1 = range(6, 14)
TANH_0, TANH_1 = range(14, 16)
# And about the affine map in front of the spline.
GIVEN, SHIFT, RAW_SCALE, SCALE, TANH, _ROWS = range(16, 22)

_BUILT_ON = "fc23495fcce0"
"""Of `vector_kernels.py`: numba compiles a file again when it changes, not when that one does."""
INPUTS = "int64, float32[::1], boolean, boolean, float32[:, :], float32[:, :], "
_THERE = f"void({INPUTS} float32[:, ::1], float32[::1])"
"""One signature for all strides, or each kind of strides would be compiled at its first call."""


@compiled
def _read(
    x_ND: Array, raw_NE: Array, lead: Number, first: Number, count: Number, size_KJ: Array,
    fact_RJ: Array,
) -> None:  # fmt: skip
    """Copy a block of values, and the logits of their bins."""
    channels = x_ND.shape[1]
    n, d = first // channels, first % channels
    for j in range(count):
        fact_RJ[GIVEN, j] = x_ND[n, d]
        if lead:
            fact_RJ[SHIFT, j], fact_RJ[RAW_SCALE, j] = raw_NE[n, d], raw_NE[n, channels + d]
        for k in range(len(size_KJ)):
            size_KJ[k, j] = raw_NE[n, (lead + k) * channels + d]
        d += 1
        if d == channels:
            n, d = n + 1, 0


@compiled
def _subtract_largest(logit_KJ: Array, largest_J: Array) -> None:
    """Subtract the largest of each column, which no exponential then exceeds."""
    for j in range(BLOCK):
        largest_J[j] = logit_KJ[0, j]
    for k in range(1, len(logit_KJ)):
        for j in range(BLOCK):
            largest_J[j] = logit_KJ[k, j] if logit_KJ[k, j] > largest_J[j] else largest_J[j]
    for k in range(len(logit_KJ)):
        for j in range(BLOCK):
            logit_KJ[k, j] -= largest_J[j]


@compiled
def _take_sizes(size_KJ: Array, least: Number, free: Number, bits: Array, of_J: Array) -> None:
    """Turn the logits of one axis into sizes of bins. `of_J` is scratch."""
    _subtract_largest(size_KJ, of_J)
    take_exp(size_KJ.reshape(-1), bits)
    for j in range(BLOCK):
        of_J[j] = ZERO
    for k in range(len(size_KJ)):
        for j in range(BLOCK):
            of_J[j] += size_KJ[k, j]
    for j in range(BLOCK):
        of_J[j] = free / of_J[j]
    for k in range(len(size_KJ)):
        for j in range(BLOCK):
            size_KJ[k, j] = size_KJ[k, j] * of_J[j] + least


@compiled
def _find_bins(
    size_KJ: Array, edge_KJ: Array, fact_RJ: Array, bound: Number, inverted: Number
) -> None:
    """Find the bin of each value, by the number of left edges that are not above it."""
    bins = len(size_KJ) // 2
    for axis in range(2):
        first = axis * bins
        for j in range(BLOCK):
            edge_KJ[first, j] = -bound
        for k in range(first + 1, first + bins):
            for j in range(BLOCK):
                edge_KJ[k, j] = edge_KJ[k - 1, j] + size_KJ[k - 1, j]
    for j in range(BLOCK):
        fact_RJ[HERE, j] = ZERO
    first = bins if inverted else 0
    for k in range(first + 1, first + bins):
        for j in range(BLOCK):
            fact_RJ[HERE, j] += ONE if fact_RJ[VALUE, j] >= edge_KJ[k, j] else ZERO
    for j in range(BLOCK):
        here = int(fact_RJ[HERE, j])
        before, after = max(here - 1, 0), min(here + 1, bins - 1)
        fact_RJ[LEFT_X, j], fact_RJ[LEFT_Y, j] = edge_KJ[here, j], edge_KJ[bins + here, j]
        fact_RJ[WIDTH, j], fact_RJ[HEIGHT, j] = size_KJ[here, j], size_KJ[bins + here, j]
        fact_RJ[WIDTH_BEFORE, j], fact_RJ[WIDTH_AFTER, j] = size_KJ[before, j], size_KJ[after, j]
        fact_RJ[BEFORE, j] = size_KJ[bins + before, j] / size_KJ[before, j]
        fact_RJ[AFTER, j] = size_KJ[bins + after, j] / size_KJ[after, j]


@compiled
def _read_slopes(
    raw_NE: Array, lead: Number, first: Number, count: Number, bins: Number, channels: Number,
    fact_RJ: Array,
) -> None:  # fmt: skip
    """Copy the raw slopes at both ends of the bins."""
    n, d = first // channels, first % channels
    for j in range(count):
        here = int(fact_RJ[HERE, j])
        left, right = max(here - 1, 0), min(here, bins - 2)
        fact_RJ[RAW_0, j] = raw_NE[n, (lead + 2 * bins + left) * channels + d]
        fact_RJ[RAW_1, j] = raw_NE[n, (lead + 2 * bins + right) * channels + d]
        d += 1
        if d == channels:
            n, d = n + 1, 0


@compiled
def _ratio(raw_J: Array, tanh_J: Array, ratio_J: Array, bits_J: Array, most: Number) -> None:
    """Return the slope of a knot over that of the flatter bin, exp(most tanh(raw / most))."""
    for j in range(len(raw_J)):
        tanh_J[j] = TWO * raw_J[j] / most
    take_exp(tanh_J, bits_J)
    for j in range(len(raw_J)):
        tanh_J[j] = ONE - TWO / (tanh_J[j] + ONE)
        ratio_J[j] = most * tanh_J[j]
    take_exp(ratio_J, bits_J)


@compiled
def take_ratios(fact_RJ: Array, bits: Array, shape: Array) -> None:
    """Turn the raw slopes at both ends of the bins into ratios."""
    _ratio(fact_RJ[RAW_0], fact_RJ[TANH_0], fact_RJ[RATIO_0], bits[:BLOCK], shape[3])
    _ratio(fact_RJ[RAW_1], fact_RJ[TANH_1], fact_RJ[RATIO_1], bits[:BLOCK], shape[3])


@compiled
def prepare(
    x_ND: Array, raw_NE: Array, lead: Number, first: Number, count: Number, size_KJ: Array,
    edge_KJ: Array, fact_RJ: Array, bits: Array, shape: Array, inverted: Number,
) -> None:  # fmt: skip
    """Gather what the curve of each value of a block depends on."""
    bits_J, bins = bits[:BLOCK], len(size_KJ) // 2
    _read(x_ND, raw_NE, lead, first, count, size_KJ, fact_RJ)
    for axis in range(2):
        own_KJ = size_KJ[axis * bins : (axis + 1) * bins]
        _take_sizes(own_KJ, shape[1], shape[2], bits[: bins * BLOCK], fact_RJ[RATIO_0])
    fact_RJ[VALUE] = fact_RJ[GIVEN]
    if lead:
        _ratio(fact_RJ[RAW_SCALE], fact_RJ[TANH], fact_RJ[SCALE], bits_J, shape[4])
        if not inverted:
            for j in range(BLOCK):
                fact_RJ[VALUE, j] = fact_RJ[GIVEN, j] * fact_RJ[SCALE, j] + fact_RJ[SHIFT, j]
    _find_bins(size_KJ, edge_KJ, fact_RJ, shape[0], inverted)
    _read_slopes(raw_NE, lead, first, count, bins, x_ND.shape[1], fact_RJ)
    take_ratios(fact_RJ, bits, shape)


@compiled
def curve(
    fact_RJ: Array, j: Number, last: Number, bound: Number, inverted: Number
) -> tuple[Number, Number, Number, Number]:
    """Return the mean slope, the slopes at both knots, and the place in the bin."""
    at_start, at_end = fact_RJ[HERE, j] == ZERO, fact_RJ[HERE, j] == last
    mean = fact_RJ[HEIGHT, j] / fact_RJ[WIDTH, j]
    slope_0 = ONE if at_start else min(mean, fact_RJ[BEFORE, j]) * fact_RJ[RATIO_0, j]
    slope_1 = ONE if at_end else min(mean, fact_RJ[AFTER, j]) * fact_RJ[RATIO_1, j]
    value = min(max(fact_RJ[VALUE, j], -bound), bound)
    if inverted:
        risen = value - fact_RJ[LEFT_Y, j]
        turn = risen * (slope_0 + slope_1 - TWO * mean)
        a = fact_RJ[HEIGHT, j] * (mean - slope_0) + turn
        b = fact_RJ[HEIGHT, j] * slope_0 - turn
        c = -mean * risen
        root = np.sqrt(max(b * b - np.float32(4) * a * c, np.float32(0)))
        theta = TWO * c / (-b - root)
    else:
        theta = (value - fact_RJ[LEFT_X, j]) / fact_RJ[WIDTH, j]
    theta = ZERO if theta < ZERO else theta
    theta = ONE if theta > ONE else theta  # what is not a number stays so
    return mean, slope_0, slope_1, theta


@compiled
def memory(bins: Number) -> tuple[Array, Array, Array, Array]:
    """Return what a block needs: sizes and left edges of bins, facts, and scratch."""
    size_KJ = np.zeros((2 * bins, BLOCK), np.float32)
    edge_KJ = np.zeros((2 * bins, BLOCK), np.float32)
    fact_RJ = np.zeros((_ROWS, BLOCK), np.float32)
    return size_KJ, edge_KJ, fact_RJ, np.empty(bins * BLOCK, np.int32)


@compiled
def move(
    fact_RJ: Array, j: Number, last: Number, bound: Number, inverted: Number
) -> tuple[Number, Number]:
    """Return where a value inside the domain goes, and the slope of the curve there."""
    mean, slope_0, slope_1, theta = curve(fact_RJ, j, last, bound, inverted)
    rest, other = theta * (ONE - theta), ONE - theta
    below = mean + (slope_0 + slope_1 - TWO * mean) * rest
    above = slope_1 * theta * theta + TWO * mean * rest + slope_0 * other * other
    slope = above * (mean / below) * (mean / below)
    if inverted:
        return fact_RJ[LEFT_X, j] + fact_RJ[WIDTH, j] * theta, slope
    risen = (mean * theta * theta + slope_0 * rest) / below
    return fact_RJ[LEFT_Y, j] + fact_RJ[HEIGHT, j] * risen, slope


@compiled
def write(
    fact_RJ: Array, out_3J: Array, bins: Number, first: Number, count: Number, affine: Number,
    bits: Array, shape: Array, inverted: Number, y_ND: Array, log_slope_N: Array,
) -> None:  # fmt: skip
    """Map a block of values, and write them and the logs of the slopes. `out_3J` is scratch."""
    channels, last = y_ND.shape[1], np.float32(bins - 1)
    moved_J, slope_J, log_J = out_3J[0], out_3J[1], out_3J[2]
    for j in range(BLOCK):
        moved_J[j], slope_J[j] = move(fact_RJ, j, last, shape[0], inverted)
    take_log(slope_J, log_J, bits[:BLOCK])
    n, d = first // channels, first % channels
    for j in range(count):
        value = fact_RJ[VALUE, j]
        log = value + log_J[j] if np.isnan(value + log_J[j]) else ZERO
        if abs(value) < shape[0]:
            value, log = moved_J[j], log_J[j]
        if affine:
            log += shape[4] * fact_RJ[TANH, j]
            if inverted:
                value = (value - fact_RJ[SHIFT, j]) / fact_RJ[SCALE, j]
        y_ND[n, d] = value
        log_slope_N[n] += -log if inverted else log
        d += 1
        if d == channels:
            n, d = n + 1, 0


@compiled_for(_THERE)
def bend_values(
    bins: int, shape: Array, affine: bool, inverted: bool, x_ND: Array, raw_NE: Array,
    y_ND: Array, log_slope_N: Array,
) -> None:  # fmt: skip
    """Map values through their splines.

    Args:
        bins: K.
        shape: float32, the bound of the domain, the smallest size of a bin, what the softmax
            distributes, the bound of the log of a slope, and that of an affine scale.
        affine: shift and scale before the spline bends; the raw parameters start with these.
        inverted: take the inverse map.
        x_ND: float32, the values.
        raw_NE: float32, raw parameters.
        y_ND: float32, gets the mapped values.
        log_slope_N: float32, gets the sums over channels of the logs of the slopes.
    """
    lead = 2 if affine else 0
    size_KJ, edge_KJ, fact_RJ, bits = memory(bins)
    out_3J = np.ones((3, BLOCK), np.float32)
    log_slope_N[:] = ZERO
    for first in range(0, x_ND.size, BLOCK):
        count = min(BLOCK, x_ND.size - first)
        prepare(x_ND, raw_NE, lead, first, count, size_KJ, edge_KJ, fact_RJ, bits, shape, inverted)
        write(fact_RJ, out_3J, bins, first, count, affine, bits, shape, inverted, y_ND, log_slope_N)
