"""The training loss, without ever holding all logits."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from enigma.layers.linear_cross_entropy import chunk_tokens, linear_cross_entropy

__all__ = ["training_loss"]


def training_loss(
    hidden_BLD: Tensor,
    head: nn.Module,
    labels_BL: Tensor | None,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels_BL: Tensor | None = None,
) -> Tensor:
    """Return the loss of `EnigmaForCausalLM.forward` without ever holding all logits.

    Args:
        hidden_BLD: floating `(B, L, D)`, final hidden states.
        head: the output head. One that does more than multiply by its weight, such as a LoRA
            layer, or that has hooks, is called.
        labels_BL: int64 `(B, L)`, -100 for tokens not to predict; shifted here.
        num_items_in_batch: divide the sum by it; None takes the mean over the targets.
        shift_labels_BL: int64 `(B, L)`, labels that are shifted already, instead of `labels_BL`.

    Returns:
        0-d, nats per token, in the dtype of the head.

    With a plain head, the gradients are computed together with the loss, a chunk of tokens at a
    time, so there is no second derivative. Autocast is off here: in bf16 the loss itself would be
    rounded to 3 digits.
    """
    if shift_labels_BL is None:
        if labels_BL is None:
            raise ValueError("expected labels or shift_labels, got None for both")
        hidden_BLD, shift_labels_BL = hidden_BLD[:, :-1], labels_BL[:, 1:]
    hidden_ND = hidden_BLD.flatten(0, 1)
    target_N = shift_labels_BL.flatten().to(hidden_ND.device)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        if _only_multiplies(head):
            weight_VD = cast("nn.Linear", head).weight
            loss = linear_cross_entropy(
                hidden_ND.to(weight_VD.dtype),
                weight_VD,
                target_N,
                reduction="mean" if num_items_in_batch is None else "sum",
            )
            return loss if num_items_in_batch is None else loss / num_items_in_batch
        floating = (p.dtype for p in head.parameters() if p.is_floating_point())
        hidden_ND = hidden_ND.to(next(floating, hidden_ND.dtype))
        chunk = chunk_tokens(hidden_ND.device)
        parts = zip(torch.split(hidden_ND, chunk), torch.split(target_N, chunk), strict=True)
        losses = [
            checkpoint(_summed_loss, head, h_ND, t_N, use_reentrant=False) for h_ND, t_N in parts
        ]
        count = (target_N != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return torch.stack(losses).sum() / count


def _summed_loss(head: nn.Module, hidden_ND: Tensor, target_N: Tensor) -> Tensor:
    logits_NV = head(hidden_ND)
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    return functional.cross_entropy(logits_NV.to(wide), target_N, reduction="sum")


def _only_multiplies(head: nn.Module) -> bool:
    """Whether calling the head is multiplying by its weight, and nobody watches the call."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    # torch has no public name for the hooks of all modules, by which profilers count.
    of_all = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]  # noqa: SLF001
    watched = of_all or any(getattr(head, name) for name in names)
    # Offloading replaces `forward` in the instance.
    own = type(head).forward is nn.Linear.forward and "forward" not in vars(head)
    return own and getattr(head, "bias", None) is None and not watched
