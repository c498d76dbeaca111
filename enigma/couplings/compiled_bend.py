"""Calls the compiled spline, on as many threads as torch uses; numba is optional.

Legend: N vectors, D channels, P raw parameters per channel, E = P D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["Spline", "can_compile", "compiled_bend"]

_THERE = ("spline_kernels", "bend_values")
_BACK = ("spline_gradient_kernels", "bend_back")
_PART = 2**14
"""Values that keep a thread busy for a millisecond: fewer are not worth a thread."""


class Spline(Protocol):
    """What the loop needs to know, and what it cannot do."""

    @property
    def num_bins(self) -> int:
        """Its bins."""

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
def _loop(module: str, name: str) -> Any:
    """Import a loop, which compiles it where the disk does not have it yet; None without numba."""
    if find_spec("numba") is None:
        return None
    return getattr(import_module(f"enigma.couplings.{module}"), name)


def can_compile(*tensors: Tensor) -> bool:
    """Return whether the loop is there for these tensors: float32 on a CPU, where numba is."""
    wanted = (torch.float32, "cpu")
    return all((t.dtype, t.device.type) == wanted for t in tensors) and _loop(*_THERE) is not None


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
        _in_parts(_loop(*_THERE), settings, value_ND, raw_NE, moved_ND, log_slope_N)
        return moved_ND, log_slope_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        value_ND, raw_NE = ctx.saved_tensors
        # Gradients are recorded here if the gradient is to be differentiated once more. A batch of
        # gradients (`is_grads_batched`) holds no memory of its own.
        batched = torch._C._functorch.is_legacy_batchedtensor(grads[0])  # noqa: SLF001
        if torch.is_grad_enabled() or batched:
            with torch.enable_grad():
                inputs = [
                    t if t.requires_grad else t.detach().requires_grad_()
                    for t in (value_ND, raw_NE)
                ]
                outputs = ctx.spline.bend_in_operations(*inputs, inverted=ctx.inverted)
                by_value_ND, by_raw_NE = torch.autograd.grad(
                    outputs, inputs, grads, create_graph=torch.is_grad_enabled()
                )
            return by_value_ND, by_raw_NE, None, None
        by_value_ND = value_ND.new_empty(value_ND.shape)
        by_raw_NE = raw_NE.new_empty(raw_NE.shape)
        settings = _settings(ctx.spline, inverted=ctx.inverted)
        _in_parts(_loop(*_BACK), settings, value_ND, raw_NE, *grads, by_value_ND, by_raw_NE)
        return by_value_ND, by_raw_NE, None, None


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
