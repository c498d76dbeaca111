"""What the text itself has said: a pointer to earlier places, mixed in by a learned gate.

A text repeats its own names and terms. Token t looks for earlier places s that resemble its own and
predicts what followed there, which it has read already (s + 1 <= t):

    p_pointer(x) = sum over s of a_ts [x_(s+1) = x],
    a_ts = softmax over s of (c f_t . f_s + r_1 [x_s = x_t] + r_2 [x_(s-1) x_s = x_(t-1) x_t]).

f is a projection of the network's final state to the unit sphere; c, r_1 and r_2 are learned. The
model predicts g p + (1 - g) p_pointer with a gate g for each token, which adds up to 1. (Grave et
al., "Improving Neural Language Models with a Continuous Cache", 2017, equations 2 to 4, with a
projection, a gate and repeats that are learned; Merity et al., "Pointer Sentinel Mixture Models",
2017.) It points at ids: also one that is not reachable can be said again.

Legend: B batch, L tokens, R of these that point, S places (all tokens so far), D channels, C
channels of the projection, F facts, V ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from enigma.language_model.memory.gate import gate_logits, mix
from enigma.language_model.memory.token_facts import keep_facts, last_facts
from enigma.layers.linear import Linear

__all__ = ["Pointed", "Pointer"]

_SHARPNESS, _REPEAT = 10.0, 2.0
_FACTS = 5
_CERTAIN = 1.0e4
"""Logit of a gate that is closed: the other share is exactly 0 in every dtype."""


class Pointed(NamedTuple):
    """Where tokens point.

    Attributes:
        weight_BRS: floating `(B, R, S)`, of each place; they add up to 1, or are all 0 where no
            place is left, as after the first token.
        next_BRS: int64 `(B, R, S)`, the id that followed there; -1 where the weight is 0.
        facts_BRF: floating `(B, R, F)`, what the gate reads.
    """

    weight_BRS: Tensor
    next_BRS: Tensor
    facts_BRF: Tensor

    def at(self, select: Callable[[Tensor], Tensor]) -> Pointed:
        """Apply an index or a change of the first dimensions to all of it."""
        return Pointed(*(select(each) for each in self))


class Pointer(nn.Module):
    """A pointer to earlier places of the same text, and the gate that mixes it in.

    It takes memory for B x R x S weights, where attention takes none: 4 MB of float32 for a text of
    1,024 tokens of which every one points.

    Args:
        d: width D of the network.
        channels: C.
    """

    num_cache_slots = 2

    def __init__(self, d: int, channels: int) -> None:
        super().__init__()
        self.project = Linear(d, channels)
        self.log_sharpness = nn.Parameter(torch.empty(1))
        self.repeats = nn.Parameter(torch.empty(2))
        # It starts in the middle, where the network learns as much as it would alone.
        self.gate = Linear(d + _FACTS, 1, zero=True, bias=True)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start where a pointer that learned nothing is of use already."""
        self.log_sharpness.fill_(_SHARPNESS).log_()
        self.repeats.fill_(_REPEAT)

    def forward(
        self,
        hidden_BLD: Tensor,
        ids_BL: Tensor,
        *,
        starts_BL: Tensor | None = None,
        visible: Tensor | None = None,
        cache: Any = None,
        slot: int = 0,
        rows: Tensor | None = None,
    ) -> Pointed:
        """Point.

        Args:
            hidden_BLD: floating `(B, L, D)`, final hidden states of these tokens.
            ids_BL: int64 `(B, L)`; negative at padding.
            starts_BL: bool `(B, L)`, where a text starts, beside the first token; None for nowhere.
            visible: bool `(1 or B, 1, L, S)`, which places a token sees, its own among them; None
                for all up to its own, which are the last L of S.
            cache: holds earlier tokens; these L are appended.
            slot: the first of the two layers of the cache that are the pointer's.
            rows: int64 `(R,)`, which tokens point; None for all L.

        Raises:
            ValueError: for a `visible` that is floating or differs between heads.
        """
        with torch.autocast(hidden_BLD.device.type, enabled=False):
            wide = torch.promote_types(hidden_BLD.dtype, torch.float32)
            key_BLC = self.project(hidden_BLD.to(self.project.weight.dtype))
            key_BLC = functional.normalize(key_BLC.to(wide), dim=-1)
            id_BL2 = self._with_the_one_before(ids_BL, starts_BL, cache, slot)
            id_BS2, key_BSC = id_BL2, key_BLC
            if cache is not None:
                id_BS2 = keep_facts(cache, slot, id_BL2)
                key_BSC = keep_facts(cache, slot + 1, key_BLC)
            query_BRC, id_BR2 = key_BLC, id_BL2
            if rows is not None:
                query_BRC, id_BR2 = key_BLC[:, rows], id_BL2[:, rows]
            next_BS = id_BS2[..., 0].roll(-1, dims=1)  # the last one is never used
            usable_BRS = _followed(visible, ids_BL, id_BS2.shape[1], rows)
            usable_BRS = usable_BRS & ((id_BS2[..., 0] >= 0) & (next_BS >= 0)).unsqueeze(1)
            same_BRS2 = id_BR2.unsqueeze(2) == id_BS2.unsqueeze(1)
            one_BRS = same_BRS2[..., 0]
            two_BRS = one_BRS & same_BRS2[..., 1] & (id_BR2[..., 1:] >= 0)
            score_BRS = self.log_sharpness.exp().to(wide) * (query_BRC @ key_BSC.mT)
            for bonus, repeated_BRS in zip(self.repeats.to(wide), (one_BRS, two_BRS), strict=True):
                score_BRS = score_BRS + bonus * repeated_BRS
            score_BRS = score_BRS.masked_fill(~usable_BRS, torch.finfo(wide).min)
            weight_BRS = score_BRS.softmax(-1) * usable_BRS
        facts_BRF = _facts(weight_BRS.detach(), usable_BRS, one_BRS, two_BRS)
        next_BRS = torch.where(usable_BRS, next_BS.unsqueeze(1), -1)
        return Pointed(weight_BRS, next_BRS, facts_BRF)

    @staticmethod
    def _with_the_one_before(
        ids_BL: Tensor, starts_BL: Tensor | None, cache: Any, slot: int
    ) -> Tensor:
        """Return each id and the one before it in its text, -1 for none, `(B, L, 2)`."""
        earlier_B2 = None if cache is None else last_facts(cache, slot)
        none_B1 = ids_BL.new_full((ids_BL.shape[0], 1), -1)
        first_B1 = none_B1 if earlier_B2 is None else earlier_B2[:, :1]
        before_BL = torch.cat((first_B1, ids_BL), dim=1)[:, : ids_BL.shape[1]]
        if starts_BL is not None:
            before_BL = before_BL.masked_fill(starts_BL, -1)
        return torch.stack((ids_BL, before_BL), dim=-1)

    def mix_target(
        self, log_first_N: Tensor, hidden_ND: Tensor, pointed: Pointed, target_N: Tensor
    ) -> Tensor:
        """Return the log-probabilities of targets, `(N,)`.

        Args:
            log_first_N: those of the prediction so far, of ids.
            hidden_ND: final hidden states.
            pointed: of these N tokens, see `Pointed.at`.
            target_N: int64 `(N,)`, ids.
        """
        p_N = (pointed.weight_BRS * (pointed.next_BRS == target_N.unsqueeze(-1))).sum(-1)
        return _joined(
            log_first_N, p_N.to(log_first_N.dtype), self._gate_logits(hidden_ND, pointed)
        )

    def mix_logits(self, log_first: Tensor, hidden: Tensor, pointed: Pointed) -> Tensor:
        """Return log-probabilities of ids, `(..., V)`.

        Args:
            log_first: `(..., V)`, those of the prediction so far.
            hidden: `(..., D)`, final hidden states.
            pointed: of these tokens.
        """
        place = pointed.next_BRS.clamp(min=0)
        weight = pointed.weight_BRS.to(log_first.dtype)
        p_pointer = torch.zeros_like(log_first).scatter_add(-1, place, weight).gather(-1, place)
        logits = self._gate_logits(hidden, pointed).unsqueeze(-1)
        # Only the ids of places are mixed: the others are many, and a row of them is large.
        mixed = _joined(log_first.gather(-1, place), p_pointer, logits)
        others = functional.logsigmoid(logits) + log_first
        # Places of one id have one value, and the largest of equal ones shares its gradient out.
        return others.scatter_(-1, place, -torch.inf).scatter_reduce(-1, place, mixed, "amax")

    def _gate_logits(self, hidden: Tensor, pointed: Pointed) -> Tensor:
        """Return the logits of g, `(...)`: certain where the pointer has no place."""
        logits = gate_logits(self.gate, hidden, pointed.facts_BRF)
        return logits.masked_fill((pointed.next_BRS < 0).all(-1), _CERTAIN)


def _joined(log_first: Tensor, p_pointer: Tensor, logits: Tensor) -> Tensor:
    """Mix; without an infinite logarithm, whose gradient is not a number, where p_pointer is 0."""
    pointed_at = p_pointer > 0
    both = mix(log_first, torch.where(pointed_at, p_pointer, 1.0).log(), logits)
    return torch.where(pointed_at, both, functional.logsigmoid(logits) + log_first)


def _followed(
    visible: Tensor | None, ids_BL: Tensor, num_places: int, rows: Tensor | None
) -> Tensor:
    """Return which places a token sees together with the next one, bool `(1 or B, R, S)`."""
    place_S = torch.arange(num_places, device=ids_BL.device)
    if visible is None:
        own_L = place_S[num_places - ids_BL.shape[1] :]
        own_R = own_L if rows is None else own_L[rows]
        return (place_S < own_R.unsqueeze(1)).unsqueeze(0)
    if visible.dtype != torch.bool or visible.ndim != 4 or visible.shape[1] != 1:
        raise ValueError(
            "expected visible of dtype torch.bool and shape (1 or B, 1, L, S) in a model with a "
            f"pointer, which has no heads, got {visible.dtype} of shape {tuple(visible.shape)}"
        )
    seen = visible[:, 0] if rows is None else visible[:, 0, rows]
    return seen & seen.roll(-1, dims=-1) & (place_S < num_places - 1)


def _facts(weight_BRS: Tensor, usable_BRS: Tensor, one_BRS: Tensor, two_BRS: Tensor) -> Tensor:
    """Return what the gate reads: repeats, the largest weight, the entropy, the places."""
    entropy_BR = torch.special.entr(weight_BRS).sum(-1)
    places_BR = usable_BRS.sum(-1).expand_as(entropy_BR).to(entropy_BR.dtype)
    facts = (
        (one_BRS & usable_BRS).any(-1).to(entropy_BR.dtype),
        (two_BRS & usable_BRS).any(-1).to(entropy_BR.dtype),
        weight_BRS.amax(-1) if weight_BRS.shape[-1] else entropy_BR,  # of no place: 0
        entropy_BR,
        places_BR.log1p(),
    )
    return torch.stack(facts, dim=-1)
