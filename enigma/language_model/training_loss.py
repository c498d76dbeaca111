"""The training loss, without ever holding all logits."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from enigma.language_model.reachable import ReachableVocabulary
from enigma.layers.linear import only_multiplies

__all__ = ["training_loss"]

_CHUNK = 256
"""Tokens whose logits are held at a time; fewer make the products slower."""


def training_loss(
    hidden_BLD: Tensor,
    head: nn.Module,
    labels_BL: Tensor | None,
    *,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels_BL: Tensor | None = None,
    reachable: ReachableVocabulary | None = None,
) -> Tensor:
    """Return the loss of `EnigmaForCausalLM.forward` without ever holding all logits.

    Args:
        hidden_BLD: floating `(B, L, D)`, final hidden states.
        head: the output head. One that does more than multiply by its weight, such as a LoRA
            layer, or that has hooks, is called.
        labels_BL: int64 `(B, L)`, -100 for tokens not to predict; shifted here.
        num_items_in_batch: divide the sum by it; None takes the mean over the targets.
        shift_labels_BL: int64 `(B, L)`, labels that are shifted already, instead of `labels_BL`.
        reachable: the classes of a reachable vocabulary; None takes every id as one.

    Returns:
        0-d, nats per token, in the dtype of the head.

    With a plain head, the gradients are computed together with the loss, `_CHUNK` tokens at
    a time, so there is no second derivative. Autocast is off here: in bf16 the loss itself would be
    rounded to 3 digits.
    """
    if shift_labels_BL is None:
        if labels_BL is None:
            raise ValueError("expected labels or shift_labels, got None for both")
        hidden_BLD, shift_labels_BL = hidden_BLD[:, :-1], labels_BL[:, 1:]
    hidden_ND = hidden_BLD.flatten(0, 1)
    target_N = shift_labels_BL.flatten().to(hidden_ND.device)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        if only_multiplies(head):
            return _loss_of_plain_head(hidden_ND, head, target_N, num_items_in_batch, reachable)
        floating = (p.dtype for p in head.parameters() if p.is_floating_point())
        hidden_ND = hidden_ND.to(next(floating, hidden_ND.dtype))
        parts = zip(torch.split(hidden_ND, _CHUNK), torch.split(target_N, _CHUNK), strict=True)
        losses = [
            checkpoint(_summed_loss, head, reachable, h_ND, t_N, use_reentrant=False)
            for h_ND, t_N in parts
        ]
        count = (target_N != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return torch.stack(losses).sum() / count


def _loss_of_plain_head(
    hidden_ND: Tensor,
    head: nn.Module,
    target_N: Tensor,
    num_items_in_batch: Tensor | int | None,
    reachable: ReachableVocabulary | None,
) -> Tensor:
    weight_CD, cost_N = cast("nn.Linear", head).weight, None
    if reachable is not None:
        weight_CD = reachable.class_weight(head)
        target_N, cost_N = reachable.targets(target_N, weight_CD.dtype)
    loss: Tensor = functional.linear_cross_entropy(
        hidden_ND.to(weight_CD.dtype),
        weight_CD,
        target_N,
        reduction="mean" if num_items_in_batch is None else "sum",
        options=nn.LinearCrossEntropyOptions(batch_chunk_size=_CHUNK),
    )
    if num_items_in_batch is not None:
        loss = loss if cost_N is None else loss + cost_N.sum()
        return loss / num_items_in_batch
    return loss if cost_N is None else loss + cost_N.sum() / (target_N != -100).sum()


def _summed_loss(
    head: nn.Module, reachable: ReachableVocabulary | None, hidden_ND: Tensor, target_N: Tensor
) -> Tensor:
    logits_NC = head(hidden_ND) if reachable is None else reachable.class_logits(head, hidden_ND)
    logits_NC = logits_NC.to(torch.promote_types(logits_NC.dtype, torch.float32))
    if reachable is None:
        return functional.cross_entropy(logits_NC, target_N, reduction="sum")
    target_N, cost_N = reachable.targets(target_N, logits_NC.dtype)
    return functional.cross_entropy(logits_NC, target_N, reduction="sum") + cost_N.sum()
