"""Causal attention with dropout on the CPU, where torch has no fused kernel for it.

There torch falls back to whole score matrices, masks them, and draws a random number even for
weights above the diagonal. Here a block of queries is taken at a time against the keys that it
sees, and 16 random bits decide whether a weight is dropped.

Legend: N texts times heads, L tokens, R rows of queries, S keys that they see, K channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from enigma.layers.transforms import transforms_active

__all__ = ["dropped_attention"]

_ROWS = 64
"""Queries in a block: 256 tokens then need five eighths of the products of whole matrices."""
_LEVELS = 2**16
"""Drop probabilities are multiples of its inverse."""


class _DroppedAttention(torch.autograd.Function):
    """softmax(q k^T) with weights dropped, times v; saves the weights for the backward pass.

    The gradient through the softmax needs the sum of w dw over the keys of a query, which is the
    inner product of that query's output and its gradient (Dao et al., "FlashAttention", 2022,
    appendix B.2).
    """

    @staticmethod
    def forward(
        ctx: Any, q_NLK: Tensor, k_NLK: Tensor, v_NLK: Tensor, probability: float
    ) -> Tensor:
        y_NLK = torch.empty_like(v_NLK)
        later_RR = torch.ones(_ROWS, _ROWS, dtype=torch.bool).triu(1)
        kept = []
        for rows, seen in _blocks(q_NLK.shape[1]):
            scores_NRS = torch.bmm(q_NLK[:, rows], k_NLK[:, seen].mT)
            own_NRR = scores_NRS[..., rows]
            own_NRR.masked_fill_(later_RR[: own_NRR.shape[1], : own_NRR.shape[1]], -torch.inf)
            weights_NRS = torch.softmax(scores_NRS, dim=-1)
            keep_NRS = _draw(weights_NRS, probability)
            y_NLK[:, rows] = torch.bmm(torch.where(keep_NRS, weights_NRS, 0.0), v_NLK[:, seen])
            kept += [weights_NRS, keep_NRS]
        ctx.save_for_backward(q_NLK, k_NLK, v_NLK, y_NLK, *kept)
        return y_NLK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad_NLK,) = grads
        q_NLK, k_NLK, v_NLK, y_NLK, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated once more
            q_NLK, k_NLK, v_NLK = inputs = [
                x if x.requires_grad else x.detach().requires_grad_() for x in (q_NLK, k_NLK, v_NLK)
            ]
            again_NLK = _attend_again(q_NLK, k_NLK, v_NLK, kept[1::2])
            grads = torch.autograd.grad(again_NLK, inputs, grad_NLK, create_graph=True)
            return grads[0], grads[1], grads[2], None
        along_y_NL1 = (grad_NLK * y_NLK).sum(-1, keepdim=True)
        grad_q_NLK = torch.empty_like(q_NLK)
        grad_k_NLK, grad_v_NLK = torch.zeros_like(k_NLK), torch.zeros_like(v_NLK)
        blocks = zip(_blocks(q_NLK.shape[1]), kept[::2], kept[1::2], strict=True)
        for (rows, seen), weights_NRS, keep_NRS in blocks:
            grad_NRK = grad_NLK[:, rows]
            # Each is as large as the weights, and not needed when the next is made.
            dropped_NRS = torch.where(keep_NRS, weights_NRS, 0.0)
            grad_v_NLK[:, seen] += torch.bmm(dropped_NRS.mT, grad_NRK)
            del dropped_NRS
            grad_NRS = torch.bmm(grad_NRK, v_NLK[:, seen].mT).mul_(keep_NRS)
            grad_NRS.sub_(along_y_NL1[:, rows]).mul_(weights_NRS)
            grad_q_NLK[:, rows] = torch.bmm(grad_NRS, k_NLK[:, seen])
            grad_k_NLK[:, seen] += torch.bmm(grad_NRS.mT, q_NLK[:, rows])
            del grad_NRS
        return grad_q_NLK, grad_k_NLK, grad_v_NLK, None


def _attend_again(q_NLK: Tensor, k_NLK: Tensor, v_NLK: Tensor, kept: list[Tensor]) -> Tensor:
    """Return the attention with the weights that were kept, in differentiable operations."""
    y_NLK = []
    for (rows, seen), keep_NRS in zip(_blocks(q_NLK.shape[1]), kept, strict=True):
        scores_NRS = torch.bmm(q_NLK[:, rows], k_NLK[:, seen].mT)
        later_RS = torch.ones(keep_NRS.shape[1:], dtype=torch.bool).triu(1 + rows.start)
        weights_NRS = scores_NRS.masked_fill(later_RS, -torch.inf).softmax(dim=-1)
        y_NLK.append(torch.bmm(weights_NRS * keep_NRS, v_NLK[:, seen]))
    return torch.cat(y_NLK, dim=1)


def dropped_attention(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, probability: float) -> Tensor:
    """Return the causal attention with weights dropped at random.

    The other weights are scaled by 1 / (1 - probability). Half precision is computed in float32.

    Args:
        q_BHLK: queries `(B, H, L, K)`.
        k_BHLK: keys of the same tokens, of the same shape.
        v_BHLK: values, of the same shape.
        probability: of dropping a weight, in [0, 1); rounded to a multiple of 2^-16.

    Returns:
        `(B, H, L, K)`, in the dtype of the values.
    """
    if transforms_active():
        return functional.scaled_dot_product_attention(
            q_BHLK, k_BHLK, v_BHLK, dropout_p=probability, is_causal=True
        )
    wide = torch.promote_types(v_BHLK.dtype, torch.float32)
    q_NLK, k_NLK, v_NLK = (x.to(wide).flatten(0, 1) for x in (q_BHLK, k_BHLK, v_BHLK))
    # Both factors belong to scores and weights, but queries and values are smaller.
    q_NLK = q_NLK / math.sqrt(q_NLK.shape[-1])
    v_NLK = v_NLK / (1 - probability)
    with torch.autocast(v_BHLK.device.type, enabled=False):
        y_NLK: Tensor = _DroppedAttention.apply(q_NLK, k_NLK, v_NLK, probability)  # type: ignore[no-untyped-call]
    return y_NLK.view(v_BHLK.shape).to(v_BHLK.dtype)


def _blocks(length: int) -> list[tuple[slice, slice]]:
    """Return the rows of every block of queries, and the keys that the block sees."""
    starts = range(0, length, _ROWS)
    stops = [min(start + _ROWS, length) for start in starts]
    return [(slice(start, stop), slice(0, stop)) for start, stop in zip(starts, stops, strict=True)]


def _draw(like: Tensor, probability: float) -> Tensor:
    """Return which weights to keep, bool, six times as fast as `Tensor.bernoulli_`."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64)
    bits = words.random_(torch.iinfo(torch.int64).min, None).view(torch.int16)
    threshold = round(probability * _LEVELS) - _LEVELS // 2
    return (bits[: like.numel()] >= threshold).view(like.shape)
