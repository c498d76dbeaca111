"""What depends on the weights alone, computed once while the weights do not change.

To form the matrix of a rotor takes as long as to apply it to D tokens. Nothing can tell whether
weights have changed since (an edit of `.data` leaves no trace), so nothing is kept unless the
caller says that they will not.

Results are kept on the module that they belong to, as a compiled program reads attributes of
modules and cannot read a `ContextVar`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FormsOnce", "constant_weights"]

_Formed = dict[str, tuple[Tensor, Tensor]]
"""For each name the weight and the result."""
_RESULTS: ContextVar[dict[FormsOnce, _Formed] | None] = ContextVar("results", default=None)


@contextmanager
def constant_weights() -> Iterator[None]:
    """Declare that no weight changes until the block ends, in this thread.

    The rotors then form their matrices, and learned permutations their order, at the first call
    without gradients only. `EnigmaForCausalLM.generate` does this; a loop that evaluates a model
    or samples from a flow batch by batch should.

    A compiled program uses what ordinary calls have formed since the block began, in any thread;
    it forms nothing that is kept.

    Examples:
        >>> from enigma.invertible_conv1x1 import InvertibleConv1x1
        >>> rotor = InvertibleConv1x1(num_channels=4).eval()
        >>> with torch.no_grad(), constant_weights():
        ...     shapes = [rotor(torch.ones(1, 4)).shape for _ in range(2)]
    """
    if _RESULTS.get() is not None:  # a loop within a loop
        yield
        return
    results: dict[FormsOnce, _Formed] = {}
    token = _RESULTS.set(results)
    try:
        yield
    finally:
        _RESULTS.reset(token)
        for module, formed in results.items():
            if module.formed is formed:  # and not that of another thread
                del module.formed


class FormsOnce(nn.Module):
    """A module that forms tensors of its weights, only once while these are constant.

    Attributes:
        formed: what is kept, or None outside `constant_weights`. Neither a state dict nor a copy
            nor a file has it.
    """

    formed: _Formed | None = None

    def formed_once(self, name: str, form: Callable[[], Tensor], weight: Tensor) -> Tensor:
        """Return `form()`, or what it returned before if weights are declared constant.

        Args:
            name: of the result, within this module.
            form: makes it from `weight` alone.
            weight: another tensor in its place (`torch.func.functional_call`, offloaded weights)
                is noticed.
        """
        if torch.is_grad_enabled():
            return form()
        if torch.compiler.is_compiling():
            # Traced once: without what is formed, for any weights; with it, as its input.
            found = None if self.formed is None else self.formed.get(name)
            return found[1] if found is not None and found[0] is weight else form()
        results = _RESULTS.get()
        if results is None:
            return form()
        formed = results.setdefault(self, {})
        if name not in formed or formed[name][0] is not weight:
            formed[name] = (weight, form())
            self.formed = formed
        return formed[name][1]

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and files hold."""
        return {key: value for key, value in self.__dict__.items() if key != "formed"}
