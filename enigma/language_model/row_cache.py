"""What the n-gram memory needs of earlier tokens, in a decoding cache.

Legend: B batch, L tokens, S cached tokens, K context lengths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["earlier_rows", "keep_rows"]


def earlier_rows(cache: Any, slot: int) -> Tensor | None:
    """Return the rows of the last cached token, int64 `(B, K)`; None in an empty cache.

    Args:
        cache: of transformers, dynamic or static.
        slot: the layer of the cache that `keep_rows` fills.
    """
    layer = cache.layers[slot]
    if not layer.is_initialized:
        return None
    kept_BSK: Tensor = layer.keys[:, 0]
    if not layer.is_compileable:
        return kept_BSK[:, -1] if kept_BSK.shape[1] else None
    length = layer.get_seq_length().view(1)
    last_BK = kept_BSK.index_select(1, (length - 1).clamp(min=0))[:, 0]
    return torch.where(length > 0, last_BK, -1)


def keep_rows(cache: Any, slot: int, rows_BLK: Tensor) -> None:
    """Keep the rows of new tokens like keys: what reorders or crops these does the same to them."""
    rows_B1LK = rows_BLK.unsqueeze(1)
    cache.update(rows_B1LK, rows_B1LK[..., :0], slot)
