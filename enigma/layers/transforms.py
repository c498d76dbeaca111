"""Whether derivatives other than those of ordinary backward passes are being taken.

An autograd function that is written by hand gives what `backward` needs. Transforms of `torch.func`
and forward-mode derivatives look through the operations instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

__all__ = ["gradient_by_operations", "recomputed", "transforms_active"]

_Result = TypeVar("_Result")


def transforms_active() -> bool:
    """Return whether a transform of `torch.func` or forward-mode differentiation is at work.

    Examples:
        >>> transforms_active()
        False
    """
    # torch has no public name for either.
    functional: bool = torch._C._are_functorch_transforms_active()  # noqa: SLF001
    return functional or forward_ad._current_level >= 0  # noqa: SLF001


def recomputed(function: Callable[..., _Result], *inputs: object) -> _Result:
    """Call a function that is computed once more in the backward pass, instead of its activations.

    Inside the transforms above, where torch cannot do that, the activations are kept.
    """
    if transforms_active():
        return function(*inputs)
    result: _Result = checkpoint(function, *inputs, use_reentrant=False)
    return result


def gradient_by_operations(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[Tensor, ...] | None:
    """Return the gradient by ordinary operations where one written by hand would not do.

    Call it in a backward pass. Gradients are recorded there if the gradient is to be differentiated
    once more. A batch of gradients (`is_grads_batched`) cannot be written into memory of a single
    one.

    Args:
        function: the map in operations.
        inputs: what it takes.
        grads: the gradients by what it returns.

    Returns:
        The gradients by the inputs, or None where a hand-written gradient will do.
    """
    batched = any(map(torch._C._functorch.is_legacy_batchedtensor, grads))  # noqa: SLF001
    recorded = torch.is_grad_enabled()
    if not recorded and not batched:
        return None
    with torch.enable_grad():
        free = [t if t.requires_grad else t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(function(*free), free, grads, create_graph=recorded)
