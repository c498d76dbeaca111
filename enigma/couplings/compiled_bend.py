"""Calls the compiled spline, on as many threads as torch uses; numba is optional.

Legend: N vectors, D channels, P raw parameters per channel, E = P D.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from enigma.layers.transforms import gradient_by_operations

__all__ = ["Spline", "can_compile", "compiled_bend"]

_PART = 2**14
"""Values that keep a thread busy for a millisecond: fewer are not worth a thread."""


class Spline(Protocol):
    """What the loop needs to know, and what it cannot do."""

    @property
    def num_bins(self) -> int:
        """Its bins."""

    @property
    def num_parameters(self) -> int:
        """Raw parameters per channel."""

    @property
    def affine(self) -> object | None:
        """What shifts and scales before the spline bends."""

    @property
    def numbers(self) -> tuple[float, ...]:
        """The `shape` of `enigma.couplings.spline_kernels.bend_values`."""

    def bend_in_operations(
        self, value: Tensor, raw: Tensor, *, inverted: bool
    ) -> tuple[Tensor, Tensor]:
        """Do the same in operations that can be differentiated twice."""


@cache
def _loops() -> tuple[Any, Any] | None:
    """Import the loops, which compiles them where the disk does not have them yet.

    Returns:
        The loop there and that back, or None where numba is absent or cannot work: another
        NumPy than it knows, or no folder that it may write machine code to.
    """
    if find_spec("numba") is None:
        return None
    try:
        there = import_module("enigma.couplings.spline_kernels")
        back = import_module("enigma.couplings.spline_gradient_kernels")
    except (ImportError, RuntimeError) as error:
        warnings.warn(f"splines are not compiled: {error}", RuntimeWarning, stacklevel=2)
        return None
    return there.bend_values, back.bend_back


def can_compile(value: Tensor, raw: Tensor, spline: Spline) -> bool:
    """Return whether the loop takes these tensors: float32 on a CPU, where numba is.

    It checks no bounds, so shapes that do not fit are left to the operations, which refuse them;
    so are subclasses of tensors, whose memory may not be theirs.
    """
    wanted = (torch.float32, "cpu")
    return (
        raw.shape == (*value.shape[:-1], spline.num_parameters * value.shape[-1])
        and all((t.dtype, t.device.type) == wanted for t in (value, raw))
        and all(type(t) in (Tensor, nn.Parameter) for t in (value, raw))
        and _loops() is not None
    )


def compiled_bend(
    value: Tensor, raw: Tensor, spline: Spline, *, inverted: bool
) -> tuple[Tensor, Tensor]:
    """Return where splines take vectors, `(..., D)`, and the logs of the slopes, `(...)`.

    Args:
        value: float32 `(..., D)`.
        raw: float32 `(..., E)`.
        spline: what to do.
        inverted: do the inverse.
    """
    moved_ND, log_slope_N = _CompiledBend.apply(  # type: ignore[no-untyped-call]
        value.reshape(-1, value.shape[-1]), raw.reshape(-1, raw.shape[-1]), spline, inverted
    )
    return moved_ND.view(value.shape), log_slope_N.view(value.shape[:-1])


class _CompiledBend(torch.autograd.Function):
    """Maps N vectors; saves nothing but its inputs."""

    @staticmethod
    def forward(
        ctx: Any, value_ND: Tensor, raw_NE: Tensor, spline: Spline, inverted: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(value_ND, raw_NE)
        ctx.spline, ctx.inverted = spline, inverted
        moved_ND = value_ND.new_empty(value_ND.shape)
        log_slope_N = value_ND.new_empty(len(value_ND))
        settings = _settings(spline, inverted=inverted)
        _in_parts(_loop_of(back=False), settings, value_ND, raw_NE, moved_ND, log_slope_N)
        return moved_ND, log_slope_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value_ND, raw_NE = ctx.saved_tensors
        in_operations = partial(ctx.spline.bend_in_operations, inverted=ctx.inverted)
        found = gradient_by_operations(in_operations, (value_ND, raw_NE), grads)
        if found is not None:
            return *found, None, None
        by_value_ND = value_ND.new_empty(value_ND.shape)
        by_raw_NE = raw_NE.new_empty(raw_NE.shape)
        settings = _settings(ctx.spline, inverted=ctx.inverted)
        _in_parts(_loop_of(back=True), settings, value_ND, raw_NE, *grads, by_value_ND, by_raw_NE)
        return by_value_ND, by_raw_NE, None, None


def _loop_of(*, back: bool) -> Callable[..., None]:
    loops = _loops()
    if loops is None:
        raise RuntimeError("expected a call only where `can_compile` says so")
    found: Callable[..., None] = loops[back]
    return found


def _settings(spline: Spline, *, inverted: bool) -> tuple[Any, ...]:
    shape = np.array(spline.numbers, np.float32)
    return spline.num_bins, shape, spline.affine is not None, inverted


def _array(tensor: Tensor) -> Any:
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()


def _in_parts(
    loop: Callable[..., None], settings: Sequence[Any], value_ND: Tensor, *others: Tensor
) -> None:
    """Call the loop for parts of the vectors, side by side if they are many."""
    arrays = [_array(tensor) for tensor in (value_ND, *others)]
    threads = min(torch.get_num_threads(), value_ND.numel() // _PART)
    if threads <= 1:
        loop(*settings, *arrays)
        return
    edges = np.linspace(0, len(value_ND), threads + 1).astype(int)

    def call(first: int, last: int) -> None:
        loop(*settings, *(array[first:last] for array in arrays))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, edges[:-1], edges[1:]))
