"""Calls the compiled splines, on as many threads as torch uses; numba is optional.

Legend: N vectors, D channels, P raw parameters per channel, E = P D, T columns of a table of bins.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from enigma.layers.transforms import gradient_by_operations

__all__ = ["Spline", "can_compile", "can_look_up", "compiled_bend", "look_up_and_bend"]

InOperations = Callable[..., tuple[Tensor, Tensor]]
Settings = tuple[Any, ...]
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
def _loops() -> dict[str, Callable[..., None]] | None:
    """Import the loops, which compiles them where the disk does not have them yet.

    Returns:
        The loops by name, or None where numba is absent or cannot work: another NumPy than it
        knows, or no folder that it may write machine code to.
    """
    if find_spec("numba") is None:
        return None
    names = ("spline_kernels", "spline_gradient_kernels", "table_kernels")
    try:
        there, back, table = (import_module(f"enigma.couplings.{name}") for name in names)
    except (ImportError, RuntimeError) as error:
        warnings.warn(f"splines are not compiled: {error}", RuntimeWarning, stacklevel=2)
        return None
    return {
        "bend": there.bend_values,
        "bend back": back.bend_back,
        "look up and bend": table.look_up_and_bend,
        "look up and bend back": table.look_up_and_bend_back,
    }


def can_compile(value: Tensor, raw: Tensor, spline: Spline) -> bool:
    """Return whether the loop takes these tensors: float32 on a CPU, where numba is.

    It checks no bounds, so shapes that do not fit are left to the operations, which refuse them;
    so are subclasses of tensors, whose memory may not be theirs.
    """
    wanted = (*value.shape[:-1], spline.num_parameters * value.shape[-1])
    return raw.shape == wanted and _plain(value, raw) and _loops() is not None


def can_look_up(value_ND: Tensor, table_TD: Tensor, spline: Spline) -> bool:
    """Return whether the loop takes these tensors, as `can_compile` does."""
    wanted = (5 * spline.num_bins - 1, *value_ND.shape[1:])
    return table_TD.shape == wanted and _plain(value_ND, table_TD) and _loops() is not None


def _plain(*tensors: Tensor) -> bool:
    return all(
        (t.dtype, t.device.type) == (torch.float32, "cpu")
        and type(t) in (Tensor, nn.Parameter)
        and not t.is_neg()
        for t in tensors
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
        loop = partial(_loop("bend"), *_settings(spline), spline.affine is not None, inverted)
        _in_parts(loop, value_ND, raw_NE, moved_ND, log_slope_N)
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
        affine = ctx.spline.affine is not None
        loop = partial(_loop("bend back"), *_settings(ctx.spline), affine, ctx.inverted)
        _in_parts(loop, value_ND, raw_NE, *grads, by_value_ND, by_raw_NE)
        return by_value_ND, by_raw_NE, None, None


def look_up_and_bend(
    value_ND: Tensor, table_TD: Tensor, spline: Spline, operations: InOperations, *,
    inverted: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return where the splines of D channels take vectors, and the logs of the slopes, `(N,)`.

    Args:
        value_ND: float32.
        table_TD: float32, of `enigma.couplings.spline.table_of_bins`.
        spline: bins and domain.
        operations: does the same in operations that can be differentiated twice.
        inverted: do the inverse.
    """
    found: tuple[Tensor, Tensor] = _LookUpAndBend.apply(  # type: ignore[no-untyped-call]
        value_ND, table_TD, (*_settings(spline), inverted), partial(operations, inverted=inverted)
    )
    return found


class _LookUpAndBend(torch.autograd.Function):
    """Maps N vectors by one table; saves nothing but its inputs."""

    @staticmethod
    def forward(
        ctx: Any, value_ND: Tensor, table_TD: Tensor, settings: Settings, operations: InOperations
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(value_ND, table_TD)
        ctx.settings, ctx.operations = settings, operations
        moved_ND = value_ND.new_empty(value_ND.shape)
        log_slope_N = value_ND.new_empty(len(value_ND))
        loop, table_DT = _loop("look up and bend"), _array(table_TD.T.contiguous())

        def look_up(value_ND: Any, *outputs: Any) -> None:
            loop(*settings, value_ND, table_DT, *outputs)

        _in_parts(look_up, value_ND, moved_ND, log_slope_N)
        return moved_ND, log_slope_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value_ND, table_TD = ctx.saved_tensors
        found = gradient_by_operations(ctx.operations, (value_ND, table_TD), grads)
        if found is not None:
            return *found, None, None
        by_value_ND = value_ND.new_empty(value_ND.shape)
        loop, table_DT = _loop("look up and bend back"), _array(table_TD.T.contiguous())

        def look_up(value_ND: Any, *rows: Any) -> Any:
            part_DT = np.empty(table_DT.shape, np.float64)
            loop(*ctx.settings, value_ND, table_DT, *rows, part_DT)
            return part_DT

        parts = _in_parts(look_up, value_ND, *grads, by_value_ND)
        by_table_DT = torch.from_numpy(sum(parts)).to(table_TD.dtype)
        return by_value_ND, by_table_DT.T, None, None


def _loop(name: str) -> Callable[..., None]:
    loops = _loops()
    if loops is None:
        raise RuntimeError("expected a call only where `can_compile` says so")
    return loops[name]


def _settings(spline: Spline) -> Settings:
    return spline.num_bins, np.array(spline.numbers, np.float32)


def _array(tensor: Tensor) -> Any:
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()


def _in_parts(loop: Callable[..., Any], value_ND: Tensor, *others: Tensor) -> list[Any]:
    """Call the loop for parts of the vectors, side by side if they are many.

    Returns:
        What it returned for each, in the order of the vectors.
    """
    arrays = [_array(tensor) for tensor in (value_ND, *others)]
    threads = min(torch.get_num_threads(), value_ND.numel() // _PART)
    if threads <= 1:
        return [loop(*arrays)]
    edges = np.linspace(0, len(value_ND), threads + 1).astype(int)

    def call(first: int, last: int) -> Any:
        return loop(*(array[first:last] for array in arrays))

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, edges[:-1], edges[1:]))
