"""What depends on the weights alone, computed once while the weights do not change.

To form the matrix of a rotor takes as long as to apply it to D tokens. Nothing can tell whether
weights have changed since (an edit of `.data` leaves no trace), so nothing is kept unless the
caller says that they will not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = ["computed_once", "constant_weights"]

_Results = dict[Callable[[], Tensor], tuple[Tensor, Tensor]]
_RESULTS: ContextVar[_Results | None] = ContextVar("results", default=None)


@contextmanager
def constant_weights() -> Iterator[None]:
    """Declare that no weight changes until the block ends, in this thread.

    The rotors then form their matrices, and learned permutations their order, at the first call
    without gradients only. `EnigmaForCausalLM.generate` does this; a loop that evaluates a model
    or samples from a flow batch by batch should.

    Examples:
        >>> from enigma.invertible_conv1x1 import InvertibleConv1x1
        >>> rotor = InvertibleConv1x1(num_channels=4).eval()
        >>> with torch.no_grad(), constant_weights():
        ...     shapes = [rotor(torch.ones(1, 4)).shape for _ in range(2)]
    """
    if _RESULTS.get() is not None:  # a loop within a loop
        yield
        return
    token = _RESULTS.set({})
    try:
        yield
    finally:
        _RESULTS.reset(token)


def computed_once(compute: Callable[[], Tensor], weight: Tensor) -> Tensor:
    """Return `compute()`, or what it returned before if weights are declared constant.

    Args:
        compute: a bound method, whose result depends on `weight` alone.
        weight: another tensor in its place (`torch.func.functional_call`, offloaded weights) is
            noticed.
    """
    # A compiled program is traced once, for any weights.
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return compute()
    results = _RESULTS.get()
    if results is None:
        return compute()
    found = results.get(compute)
    if found is None or found[0] is not weight:
        found = results[compute] = (weight, compute())
    return found[1]
