"""The training loss, without ever holding all logits.

Legend: B batch, L tokens, N targets, D channels, V ids, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from enigma.language_model.memory.evidence import Evidence
from enigma.language_model.prediction import Prediction
from enigma.layers.linear import only_multiplies
from enigma.layers.linear_cross_entropy import chunk_tokens, linear_cross_entropy
from enigma.layers.transforms import recomputed

__all__ = ["training_loss"]

_NETWORK_SHARE = 0.5
"""Share of the loss that the network pays alone, beside its memories. With the mixture alone
it learns nothing where counting is good at first, and the gate settles on one side."""


def training_loss(
    hidden_BLD: Tensor,
    model: Prediction,
    labels_BL: Tensor | None,
    *,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels_BL: Tensor | None = None,
    evidence: Evidence | None = None,
) -> Tensor:
    """Return the loss of `EnigmaForCausalLM.forward` without ever holding all logits.

    Args:
        hidden_BLD: floating `(B, L, D)`, final hidden states.
        model: whose head is used. A head that does more than multiply by its weight, such as a LoRA
            layer, or that has hooks, is called.
        labels_BL: int64 `(B, L)`, -100 for tokens not to predict; shifted here.
        num_items_in_batch: divide the sum by it; None takes the mean over the targets.
        shift_labels_BL: int64 `(B, L)`, labels that are shifted already, instead of `labels_BL`.
        evidence: see `Prediction.evidence`; None without a memory.

    Returns:
        0-d, nats per token, float32; float64 if the head is. With a memory half of it is the loss
        of the network alone, and half that of the mixture.

    With a plain head and no memory, the gradients are computed together with the loss, a chunk of
    tokens at a time, so there is no second derivative. Autocast is off here: in bf16 the loss
    itself would be rounded to 3 digits.
    """
    if shift_labels_BL is None:
        if labels_BL is None:
            raise ValueError("expected labels or shift_labels, got None for both")
        hidden_BLD, shift_labels_BL = hidden_BLD[:, :-1], labels_BL[:, 1:]
        if evidence is not None:
            evidence = evidence.at(lambda each: each[:, :-1])
    hidden_ND = hidden_BLD.flatten(0, 1)
    target_N = shift_labels_BL.flatten().to(hidden_ND.device)
    count = (target_N != -100).sum() if num_items_in_batch is None else num_items_in_batch
    with torch.autocast(hidden_ND.device.type, enabled=False):
        wide_ND = hidden_ND.to(_dtype(model.head, hidden_ND.dtype))
        class_N, cost_N = target_N, None
        if model.reachable is not None:
            wide = torch.promote_types(wide_ND.dtype, torch.float32)
            class_N, cost_N = model.reachable.targets(target_N, wide)
        if evidence is None:
            reduction = "mean" if num_items_in_batch is None else "sum"
            loss = _network_loss(wide_ND, model, class_N, reduction)
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
            return loss if cost_N is None else loss + cost_N.sum() / count
        loss_N = _network_loss(wide_ND, model, class_N, "none")
        found = evidence.at(lambda each: each.flatten(0, 1))
        mixed_N = model.mixed_nats(
            loss_N,
            hidden_ND,
            found,
            class_N=class_N.clamp(min=0),
            target_N=target_N.clamp(min=0),
            cost_N=cost_N,
        ).masked_fill(target_N < 0, 0.0)
        alone_N = loss_N if cost_N is None else loss_N + cost_N
        return (_NETWORK_SHARE * alone_N + (1 - _NETWORK_SHARE) * mixed_N).sum() / count


def _dtype(head: nn.Module, default: torch.dtype) -> torch.dtype:
    return next((p.dtype for p in head.parameters() if p.is_floating_point()), default)


def _network_loss(hidden_ND: Tensor, model: Prediction, target_N: Tensor, reduction: str) -> Tensor:
    """Return the cross-entropy of the network's classes: mean, sum or `(N,)`."""
    if only_multiplies(model.head):
        weight_CD = (
            model.head.weight
            if model.reachable is None
            else model.reachable.class_weight(model.head)
        )
        return linear_cross_entropy(hidden_ND, weight_CD, target_N, reduction=reduction)
    in_part = "none" if reduction == "none" else "sum"
    chunk = chunk_tokens(hidden_ND.device)
    parts = zip(torch.split(hidden_ND, chunk), torch.split(target_N, chunk), strict=True)
    losses = [recomputed(_called_loss, model, *part, in_part) for part in parts]
    if reduction == "none":
        return torch.cat(losses)
    total = torch.stack(losses).sum()
    return total / (target_N != -100).sum() if reduction == "mean" else total


def _called_loss(model: Prediction, hidden_ND: Tensor, target_N: Tensor, reduction: str) -> Tensor:
    logits_NC = model.class_logits(hidden_ND)
    wide = torch.promote_types(logits_NC.dtype, torch.float32)
    return functional.cross_entropy(logits_NC.to(wide), target_N, reduction=reduction)
