"""Splines that are the same for every vector, as compiled loops over a table of their bins.

The curve and its gradient are those of `enigma.couplings.spline_kernels` and
`spline_gradient_kernels`; what differs is that no exponential is taken per value: the bin is looked
up. Import it only if numba is installed; the machine code is cached on disk.

Legend: as there; T = 5 K - 1 columns of the table, for each channel K widths, K heights, K left
edges in x, K in y, and K - 1 raw slopes.
"""

from __future__ import annotations

import numpy as np

from enigma.couplings.spline_gradient_kernels import (
    BY_VALUE,
    GRADIENTS,
    LAST,
    LEFT,
    NEXT,
    OF_RAW_0,
    OF_RAW_1,
    OF_X,
    OF_Y,
    OWN,
    back_to_bins,
    read_gradients,
)
from enigma.couplings.spline_kernels import (
    AFTER,
    BEFORE,
    BLOCK,
    HEIGHT,
    HERE,
    LEFT_X,
    LEFT_Y,
    RAW_0,
    RAW_1,
    VALUE,
    WIDTH,
    WIDTH_AFTER,
    WIDTH_BEFORE,
    memory,
    take_ratios,
    write,
)
from enigma.couplings.vector_kernels import Array, Number, compiled, compiled_for

__all__ = ["look_up_and_bend", "look_up_and_bend_back"]

_BUILT_ON = "01fea4327dae"
"""Of the three files it imports from, see `spline_kernels.py`."""
_INPUTS = "int64, float32[::1], boolean, float32[:, :], float32[:, ::1], "
_THERE = f"void({_INPUTS} float32[:, ::1], float32[::1])"
_BACK = f"void({_INPUTS} float32[:, :], float32[:], float32[:, ::1], float64[:, ::1])"


@compiled
def _look_up(
    x_ND: Array, table_DT: Array, bins: Number, first: Number, count: Number, fact_RJ: Array,
    inverted: Number,
) -> None:  # fmt: skip
    """Find the bin of each value of a block by halving, and copy what is known of it."""
    channels, edges = x_ND.shape[1], (3 if inverted else 2) * bins
    n, d = first // channels, first % channels
    for j in range(count):
        value, here, end = x_ND[n, d], 0, bins
        while end - here > 1:
            middle = (here + end) // 2
            if value >= table_DT[d, edges + middle]:
                here = middle
            else:
                end = middle
        before, after = max(here - 1, 0), min(here + 1, bins - 1)
        fact_RJ[VALUE, j], fact_RJ[HERE, j] = value, here
        fact_RJ[WIDTH, j], fact_RJ[HEIGHT, j] = table_DT[d, here], table_DT[d, bins + here]
        fact_RJ[LEFT_X, j] = table_DT[d, 2 * bins + here]
        fact_RJ[LEFT_Y, j] = table_DT[d, 3 * bins + here]
        fact_RJ[WIDTH_BEFORE, j], fact_RJ[WIDTH_AFTER, j] = table_DT[d, before], table_DT[d, after]
        fact_RJ[BEFORE, j] = table_DT[d, bins + before] / table_DT[d, before]
        fact_RJ[AFTER, j] = table_DT[d, bins + after] / table_DT[d, after]
        fact_RJ[RAW_0, j] = table_DT[d, 4 * bins + before]
        fact_RJ[RAW_1, j] = table_DT[d, 4 * bins + min(here, bins - 2)]
        d += 1
        if d == channels:
            n, d = n + 1, 0


@compiled_for(_THERE)
def look_up_and_bend(
    bins: int, shape: Array, inverted: bool, x_ND: Array, table_DT: Array, y_ND: Array,
    log_slope_N: Array,
) -> None:  # fmt: skip
    """Map values through the splines of their channels.

    Args:
        bins: see `enigma.couplings.spline_kernels.bend_values`, as all but the table.
        shape: see there.
        inverted: see there.
        x_ND: see there.
        table_DT: float32, see the module.
        y_ND: see there.
        log_slope_N: see there.
    """
    _, _, fact_RJ, bits = memory(bins)
    out_3J = np.ones((3, BLOCK), np.float32)
    log_slope_N[:] = np.float32(0)
    for first in range(0, x_ND.size, BLOCK):
        count = min(BLOCK, x_ND.size - first)
        _look_up(x_ND, table_DT, bins, first, count, fact_RJ, inverted)
        take_ratios(fact_RJ, bits, shape)
        write(fact_RJ, out_3J, bins, first, count, False, bits, shape, inverted, y_ND, log_slope_N)


@compiled
def _add(
    grad_GJ: Array, fact_RJ: Array, bins: Number, first: Number, count: Number, grad_x_ND: Array,
    grad_table_DT: Array,
) -> None:  # fmt: skip
    """Write the gradients by the values of a block, and add those by the table."""
    channels = grad_x_ND.shape[1]
    n, d = first // channels, first % channels
    for j in range(count):
        here = int(fact_RJ[HERE, j])
        before, after = max(here - 1, 0), min(here + 1, bins - 1)
        grad_x_ND[n, d] = grad_GJ[BY_VALUE, j]
        for axis in range(2):
            rows, of = axis * bins, OF_Y if axis else OF_X
            grad_table_DT[d, 2 * bins + rows + here] += grad_GJ[of + LEFT, j]
            grad_table_DT[d, rows + here] += grad_GJ[of + OWN, j]
            grad_table_DT[d, rows + before] += grad_GJ[of + LAST, j]
            grad_table_DT[d, rows + after] += grad_GJ[of + NEXT, j]
        grad_table_DT[d, 4 * bins + before] += grad_GJ[OF_RAW_0, j]
        grad_table_DT[d, 4 * bins + min(here, bins - 2)] += grad_GJ[OF_RAW_1, j]
        d += 1
        if d == channels:
            n, d = n + 1, 0


@compiled_for(_BACK)
def look_up_and_bend_back(
    bins: int, shape: Array, inverted: bool, x_ND: Array, table_DT: Array, grad_y_ND: Array,
    grad_log_N: Array, grad_x_ND: Array, grad_table_DT: Array,
) -> None:  # fmt: skip
    """Carry gradients back through `look_up_and_bend`.

    Args:
        bins: see `enigma.couplings.spline_gradient_kernels.bend_back`, as all but the table.
        shape: see there.
        inverted: see there.
        x_ND: see there.
        table_DT: see `look_up_and_bend`.
        grad_y_ND: see there.
        grad_log_N: see there.
        grad_x_ND: see there.
        grad_table_DT: float64, gets the sum over vectors of the gradients by the table.
    """
    _, _, fact_RJ, bits = memory(bins)
    grad_GJ = np.zeros((GRADIENTS, BLOCK), np.float32)
    grad_table_DT[:] = 0.0
    for first in range(0, x_ND.size, BLOCK):
        count = min(BLOCK, x_ND.size - first)
        _look_up(x_ND, table_DT, bins, first, count, fact_RJ, inverted)
        take_ratios(fact_RJ, bits, shape)
        read_gradients(grad_y_ND, grad_log_N, first, count, grad_GJ)
        back_to_bins(fact_RJ, np.float32(bins - 1), shape[0], inverted, grad_GJ)
        _add(grad_GJ, fact_RJ, bins, first, count, grad_x_ND, grad_table_DT)
