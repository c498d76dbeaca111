"""What the memories need of earlier tokens, in a layer of a decoding cache.

Legend: B batch, L tokens, S cached tokens, N numbers per token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["keep_facts", "last_facts"]


def last_facts(cache: Any, slot: int) -> Tensor | None:
    """Return what is kept of the last cached token, `(B, N)`; None in an empty cache.

    Args:
        cache: of transformers, dynamic or static.
        slot: the layer of the cache that `keep_facts` fills.
    """
    if slot >= len(cache.layers):  # a dynamic cache grows as its layers are filled
        return None
    layer = cache.layers[slot]
    if not layer.is_initialized:
        return None
    kept_BSN: Tensor = layer.keys[:, 0]
    if not layer.is_compileable:
        return kept_BSN[:, -1] if kept_BSN.shape[1] else None
    length = layer.get_seq_length().view(1)
    last_BN = kept_BSN.index_select(1, (length - 1).clamp(min=0))[:, 0]
    return torch.where(length > 0, last_BN, -1)


def keep_facts(cache: Any, slot: int, facts_BLN: Tensor) -> Tensor:
    """Keep facts of new tokens like keys: what reorders or crops these does the same to them.

    Args:
        cache: of transformers, dynamic or static.
        slot: the layer of the cache to fill.
        facts_BLN: `(B, L, N)` of any dtype, the same in every call.

    Returns:
        `(B, S, N)`, of all tokens so far; in a static cache, of all that it has room for.
    """
    facts_B1LN = facts_BLN.unsqueeze(1)
    kept_B1SN: Tensor = cache.update(facts_B1LN, facts_B1LN[..., :0], slot)[0]
    return kept_B1SN[:, 0]
