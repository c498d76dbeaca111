"""What joins the network's prediction of the token after each one.

Legend: B batch, L tokens, K context lengths of the n-gram memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from enigma.language_model.memory.pointer import Pointed

__all__ = ["Evidence"]


@dataclass(frozen=True)
class Evidence:
    """What the memories of a model found for L tokens.

    Args:
        rows_BLK: int64 `(B, L, K)`, the rows of contexts in the n-gram memory; None without one.
        pointed: where the pointer points; None without one.
    """

    rows_BLK: Tensor | None
    pointed: Pointed | None

    def at(self, select: Callable[[Tensor], Tensor]) -> Evidence:
        """Apply an index or a change of the first two dimensions to all of it."""
        return Evidence(
            None if self.rows_BLK is None else select(self.rows_BLK),
            None if self.pointed is None else self.pointed.at(select),
        )
