"""The cross-entropy of a linear head, a chunk of tokens at a time.

Legend: N tokens, D channels, V ids.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from enigma.layers.transforms import recomputed, transforms_active

__all__ = ["chunk_tokens", "linear_cross_entropy"]

_CHUNK = 256
_CHUNK_ON_GPU = 4096


def chunk_tokens(device: torch.device) -> int:
    """Return how many tokens' logits are held at a time.

    Fewer make the products of a CPU slower. On a GPU every chunk costs 17 launches, and 4,096
    tokens of 21,128 ids take 330 MiB.
    """
    return _CHUNK if device.type == "cpu" else _CHUNK_ON_GPU


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """Return the cross-entropy of softmax(W h) without ever holding all logits.

    Uses `functional.linear_cross_entropy` from torch 2.13, which computes the gradients together
    with the loss; on older versions each chunk is computed once more in the backward pass. Neither
    goes with transforms of `torch.func`, inside which all logits are held.

    Args:
        hidden_ND: floating `(N, D)`; computed in float32 at least, as sums in half precision stop
            growing after a few hundred chunks.
        weight_VD: the head, `(V, D)`, of the same dtype.
        target_N: int64 `(N,)`, -100 for tokens not to predict.
        reduction: "mean" over the targets, "sum", or "none" for `(N,)`.
    """
    chunk = chunk_tokens(hidden_ND.device)
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    hidden_ND, weight_VD = hidden_ND.to(wide), weight_VD.to(wide)
    if hasattr(functional, "linear_cross_entropy") and not transforms_active():
        loss: Tensor = functional.linear_cross_entropy(
            hidden_ND,
            weight_VD,
            target_N,
            reduction=reduction,
            options=nn.LinearCrossEntropyOptions(batch_chunk_size=chunk),
        )
        return loss
    parts = zip(torch.split(hidden_ND, chunk), torch.split(target_N, chunk), strict=True)
    losses = [recomputed(_chunk_loss, hidden, weight_VD, target) for hidden, target in parts]
    loss_N = torch.cat(losses)
    if reduction == "none":
        return loss_N
    return loss_N.sum() / (target_N != -100).sum() if reduction == "mean" else loss_N.sum()


def _chunk_loss(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    logits_NV = functional.linear(hidden_ND, weight_VD)
    return functional.cross_entropy(logits_NV, target_N, reduction="none")
