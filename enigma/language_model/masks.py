"""Which keys a query sees, where the causal kernels do not know it: packed texts, static caches.

Legend: B batch, L queries, S keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["filled_keys", "packed_texts", "text_starts"]


def text_starts(position_ids_BL: Tensor) -> Tensor:
    """Return where another text starts in a row, bool `(B, L)`: positions do not go up by one."""
    return position_ids_BL.diff(prepend=position_ids_BL[:, :1] - 1) != 1


def packed_texts(position_ids_BL: Tensor) -> Tensor | None:
    """Return which keys are visible in packed texts, bool `(B, 1, L, L)`; None without such.

    A new text starts wherever the positions do not go up by one. Whether there is one is read from
    the tensor, except in an export, which has to hold for any positions.

    Examples:
        >>> packed_texts(torch.tensor([[0, 1, 0]]))[0, 0].long()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [0, 0, 1]])
    """
    starts_BL = text_starts(position_ids_BL)
    if not torch.compiler.is_compiling() and not bool(starts_BL.any()):
        return None
    text_BL = starts_BL.cumsum(-1)
    return (text_BL.unsqueeze(2) == text_BL.unsqueeze(1)).tril().unsqueeze(1)


def filled_keys(cache: Any, length: int, device: torch.device) -> Tensor:
    """Return which keys of a static cache `length` new tokens see, bool `(1, 1, L, S)`.

    Args:
        cache: a `transformers.StaticCache`, before the new tokens are put into it.
        length: new tokens, L.
        device: of the result.
    """
    num_keys, _ = cache.get_mask_sizes(length, 0)
    last_L = torch.arange(length, device=device) + cache.get_seq_length()
    visible: Tensor = torch.arange(num_keys, device=device) <= last_L.view(1, 1, -1, 1)
    return visible
