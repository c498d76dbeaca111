"""Exponentials and logarithms of whole arrays, which a compiler turns into vector instructions.

The functions of the C library take one number at a time, ten times as long. Import it only if
numba is installed; the machine code is cached on disk.

Source: Moshier's Cephes library (expf.c, logf.c), with a relative error of 1e-7 in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

__all__ = ["Array", "Number", "compiled", "compiled_for", "take_exp", "take_log"]

F = TypeVar("F", bound=Callable[..., Any])
Array = Any
# Inside compiled code this is a NumPy scalar.
Number = Any

_OPTIONS: Any = {"cache": True, "nogil": True, "error_model": "numpy"}
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_LEAST, _MOST = np.float32(-87), np.float32(88)
_LOG2_E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP = tuple(
    np.float32(c)
    for c in (
        1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
        5.0000001201e-1,
    )
)  # fmt: skip
_LOG = tuple(
    np.float32(c)
    for c in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
)  # fmt: skip
_LEAST_NORMAL, _MOST_FINITE = np.finfo(np.float32).tiny, np.finfo(np.float32).max
_NAN = np.float32(np.nan)
_SQRT_HALF = np.float32(0.70710678)


def compiled(function: F) -> F:
    """Compile a function at its first call, for the types of its arguments."""
    result: F = numba.njit(**_OPTIONS)(function)
    return result


def compiled_for(signature: str) -> Callable[[F], F]:
    """Compile a function as it is defined, for these types of arguments."""
    result: Callable[[F], F] = numba.njit(signature, **_OPTIONS)
    return result


@compiled
def take_exp(x: Array, bits: Array) -> None:
    """Take exponentials in place; `bits` is int32 of the same length."""
    for j in range(len(x)):
        v = _LEAST if x[j] < _LEAST else x[j]
        v = _MOST if v > _MOST else v  # what is not a number stays so
        n = np.floor(v * _LOG2_E + _HALF)
        r = v - n * _LN2_HIGH - n * _LN2_LOW
        p = _EXP[0] * r + _EXP[1]
        p = p * r + _EXP[2]
        p = p * r + _EXP[3]
        p = p * r + _EXP[4]
        p = p * r + _EXP[5]
        bits[j] = (np.int32(n) + np.int32(127)) << np.int32(23)
        x[j] = p * r * r + r + _ONE
    scale = bits.view(np.float32)
    for j in range(len(x)):
        x[j] *= scale[j]


@compiled
def take_log(x: Array, log: Array, bits: Array) -> None:
    """Take logarithms of normal numbers; NaN of what is not a positive one.

    Args:
        x: float32; lost.
        log: float32 of the same length, gets the logarithms.
        bits: int32 of the same length, scratch.
    """
    whole = x.view(np.int32)
    for j in range(len(x)):
        log[j] = _ZERO if _LEAST_NORMAL <= x[j] <= _MOST_FINITE else _NAN
        bits[j] = (whole[j] >> np.int32(23)) - np.int32(126)
        whole[j] = (whole[j] & np.int32(0x007FFFFF)) | np.int32(0x3F000000)  # now in [0.5, 1)
    for j in range(len(x)):
        below = x[j] < _SQRT_HALF
        n = np.float32(bits[j]) - (_ONE if below else _ZERO)
        r = (x[j] + x[j] if below else x[j]) - _ONE
        p = _LOG[0] * r + _LOG[1]
        p = p * r + _LOG[2]
        p = p * r + _LOG[3]
        p = p * r + _LOG[4]
        p = p * r + _LOG[5]
        p = p * r + _LOG[6]
        p = p * r + _LOG[7]
        p = p * r + _LOG[8]
        log[j] += r + (p * r * r * r + n * _LN2_LOW - _HALF * r * r) + n * _LN2_HIGH
