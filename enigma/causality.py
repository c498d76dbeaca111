"""A proof that no position of a language model sees the future, on its real weights.

Three quantities are computed in float64, and each must be exactly 0:

1. the derivative of logit t with respect to the embedding of every token after t;
2. the change of logit t when real tokens after t are replaced;
3. for a model with a loss: the derivative of the loss of target s with respect to the
   embedding of token s and of every later one, which is not 0 if targets are shifted wrongly.

The derivatives are computed in training mode too: dropout has an attention of its own, and the
training loss never holds all logits.

A leak behind a weight that is exactly 0, as in the last layers of a fresh model, would stay
hidden. So if a parameter is entirely 0, they are computed again with small noise in it.

Legend: C rows of a chunk, L tokens, D channels, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from enigma.model import EnigmaLM

__all__ = ["CausalityFigures", "CausalityReport", "prove_causality"]

_CHUNK_NUMBERS = 2**24
"""Logits held at a time: 128 MiB of float64."""
_STIR_STD = 0.02


@dataclass(frozen=True)
class CausalityFigures:
    """The results for one set of weights.

    Attributes:
        future_gradient: largest derivative of a logit by a later embedding; must be 0.
        past_gradient: smallest over t of the largest derivative of logit t by an embedding up to
            t; must be above 0, or the check could not have seen anything.
        suffix_change: largest change of a logit when later tokens change; must be 0.
        target_gradient: largest derivative of a target's loss by the target's embedding or a
            later one; must be 0; None for a model without a loss.
        leak: the first leak found, in words; empty without one.
    """

    future_gradient: float
    past_gradient: float
    suffix_change: float
    target_gradient: float | None
    leak: str

    @property
    def is_causal(self) -> bool:
        """Whether all that must be 0 is exactly 0; NaN counts as a leak."""
        zeros = (self.future_gradient, self.suffix_change, self.target_gradient or 0.0)
        return all(zero == 0.0 for zero in zeros) and self.past_gradient > 0.0


@dataclass(frozen=True)
class CausalityReport:
    """The outcome of `prove_causality`.

    Attributes:
        length: tokens of the text, L; every position was checked.
        real: the figures on the unchanged weights.
        stirred: the figures with noise in the parameters that are entirely 0, or None without any.
    """

    length: int
    real: CausalityFigures
    stirred: CausalityFigures | None

    @property
    def is_causal(self) -> bool:
        """Whether no position sees the future."""
        return self.real.is_causal and (self.stirred is None or self.stirred.is_causal)

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict and the figures, for a JSON file."""
        return {"is_causal": self.is_causal, **asdict(self)}


def prove_causality(
    model: nn.Module, length: int, *, ids: Tensor | None = None, seed: int = 0
) -> CausalityReport:
    """Check every position of a text for dependence on later tokens.

    The model is not changed: a copy is checked, in float64 and evaluation mode.

    Args:
        model: an `EnigmaLM`, or a model that holds one as `lm` and computes a loss from
            `labels`, like `EnigmaForCausalLM`; then the shift of the targets is checked too.
        length: tokens of the text, L, at least 2.
        ids: int64 `(L,)`, a real text; None draws ids uniformly.
        seed: of the draws.

    Returns:
        The verdict and its figures.

    Raises:
        ValueError: for a length below 2, or ids of another length.

    Examples:
        >>> lm = EnigmaLM(11, d=16, num_rev_blocks=1, num_rotors=1, num_transformer_layers=1,
        ...               num_heads=2, conv1x1_positions=4)
        >>> prove_causality(lm, length=6).is_causal
        True
    """
    if length < 2:
        raise ValueError(f"length must be at least 2, or no token has a future, got {length}")
    probe = copy.deepcopy(model).double().eval()
    lm = _language_model(probe)
    device = lm.head.weight.device
    generator = torch.Generator().manual_seed(seed)
    if ids is None:
        ids = torch.randint(lm.vocab_size, (length,), generator=generator)
    if ids.shape != (length,):
        raise ValueError(f"ids must have the shape ({length},), got {tuple(ids.shape)}")
    ids_L = ids.to(device)
    real = _examine(probe, ids_L, generator)
    stirred = _examine(probe, ids_L, generator) if _stir_zeros(probe, generator) else None
    return CausalityReport(length, real, stirred)


def _language_model(model: nn.Module) -> EnigmaLM:
    lm = getattr(model, "lm", model)
    if not isinstance(lm, EnigmaLM):
        raise TypeError(
            f"expected an EnigmaLM or a model that holds one as .lm, got {type(model).__name__}"
        )
    return lm


def _stir_zeros(model: nn.Module, generator: torch.Generator) -> bool:
    """Put noise into every parameter that is entirely 0; return whether there was one."""
    found = False
    with torch.no_grad():
        for parameter in model.parameters():
            if not bool(parameter.any()):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(_STIR_STD * noise)
                found = True
    return found


def _examine(probe: nn.Module, ids_L: Tensor, generator: torch.Generator) -> CausalityFigures:
    lm = _language_model(probe)
    by_logit_LL = _logit_gradients(lm, ids_L, generator)
    change_L = _suffix_changes(lm, ids_L, generator)
    future_LL, late_LL, leak = _derivatives(probe, ids_L, by_logit_LL)
    if not leak and bool((change_L != 0).any()):
        leak = f"replacing the tokens after {int((change_L != 0).nonzero()[0])} changes its logit"
    with _training(probe, ids_L.device):
        in_training_LL = _logit_gradients(lm, ids_L, generator)
        future_training_LL, late_training_LL, found = _derivatives(probe, ids_L, in_training_LL)
    leak = leak or (found and f"in training, {found}")
    future_LL = torch.maximum(future_LL, future_training_LL)
    late_LL = torch.maximum(late_LL, late_training_LL)
    return CausalityFigures(
        future_gradient=float(future_LL.max()),
        past_gradient=float(by_logit_LL.tril().amax(-1).min()),
        suffix_change=float(change_L.max()),
        target_gradient=None if lm is probe else float(late_LL.max()),
        leak=leak,
    )


@contextmanager
def _training(probe: nn.Module, device: torch.device) -> Iterator[None]:
    """Set training mode; what dropout draws is not taken from the generator of others."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        probe.train()
        try:
            yield
        finally:
            probe.eval()


def _derivatives(
    probe: nn.Module, ids_L: Tensor, by_logit_LL: Tensor
) -> tuple[Tensor, Tensor, str]:
    """Return two tables that must be 0, of logits and of losses, and their first leak in words."""
    future_LL = by_logit_LL.triu(1)
    late_LL = torch.zeros_like(future_LL)
    if _language_model(probe) is not probe:
        late_LL = _target_gradients(probe, ids_L).triu()
    leak = _name_first(future_LL, "logit {} has a derivative by the embedding of token {}")
    return (
        future_LL,
        late_LL,
        leak or _name_first(late_LL, "the loss of target {} depends on token {}"),
    )


def _name_first(table: Tensor, words: str) -> str:
    found = (table != 0).nonzero()
    return words.format(*found[0].tolist()) if len(found) else ""


@contextmanager
def _leaf_embeddings(lm: EnigmaLM) -> Iterator[list[Tensor]]:
    """Make the token embeddings leaves; each call of the model appends one to the list."""
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = lm.embedding.tokens.register_forward_hook(cut)
    try:
        yield leaves
    finally:
        handle.remove()


def _chunks(lm: EnigmaLM, length: int, first: int, device: torch.device) -> Iterator[Tensor]:
    most = max(1, _CHUNK_NUMBERS // (length * lm.vocab_size))
    chunks = -(-(length - first) // most)
    yield from torch.arange(first, length, device=device).tensor_split(chunks)


def _logit_gradients(lm: EnigmaLM, ids_L: Tensor, generator: torch.Generator) -> Tensor:
    """Return `(L, L)`: the largest |d logit t / d embedding s| over channels, row t, column s.

    The V logits of a row are summed with random weights: a leak cancels in these with
    probability 0. The head reads the picked rows alone, which takes 1/L of the time; a head that
    mixed rows is found by `_suffix_changes`.
    """
    weight_V = torch.randn(lm.vocab_size, generator=generator, dtype=torch.float64)
    rows = []
    for t_C in _chunks(lm, len(ids_L), 0, ids_L.device):
        ids_CL = ids_L.expand(len(t_C), -1)
        picked = torch.arange(len(t_C), device=t_C.device), t_C
        with _leaf_embeddings(lm) as leaves:
            hidden_CLD = lm(ids_CL, head=False)
        evidence = lm.evidence(hidden_CLD, ids_CL)
        if evidence is not None:
            evidence = evidence.at(itemgetter(picked))
        logits_CV = lm.logits(hidden_CLD[picked], evidence)
        (grad_CLD,) = torch.autograd.grad((logits_CV @ weight_V.to(logits_CV)).sum(), leaves)
        rows.append(grad_CLD.abs().amax(-1))
    return torch.cat(rows)


def _suffix_changes(lm: EnigmaLM, ids_L: Tensor, generator: torch.Generator) -> Tensor:
    """Return `(L - 1,)`: the largest change of logits 0 ... t when all tokens after t change."""
    length = len(ids_L)
    hop = torch.randint(1, max(2, lm.vocab_size), (length,), generator=generator).to(ids_L)
    other_L = (ids_L + hop) % lm.vocab_size
    position_L = torch.arange(length, device=ids_L.device)
    changes, logits_CLV = [], None
    with torch.no_grad():
        for t_C in _chunks(lm, length, 0, ids_L.device):
            later_CL = position_L > t_C.unsqueeze(1)
            same_CL = ids_L.expand(len(t_C), -1)
            # Both calls have the same shape, so equal rows go through equal arithmetic.
            if logits_CLV is None or len(logits_CLV) != len(t_C):
                logits_CLV = lm(same_CL)
            changed_CLV = lm(torch.where(later_CL, other_L, same_CL))
            # Impossible ids have the logit -inf, whose difference is not a number.
            leaks_CLV = (changed_CLV != logits_CLV) & ~later_CL.unsqueeze(-1)
            change_C = torch.zeros(len(t_C), dtype=torch.float64, device=t_C.device)
            if bool(leaks_CLV.any()):
                difference_CLV = (changed_CLV - logits_CLV).masked_fill_(~leaks_CLV, 0.0)
                change_C = difference_CLV.abs().amax((1, 2))
            changes.append(change_C)
    return torch.cat(changes)[:-1]


def _target_gradients(probe: nn.Module, ids_L: Tensor) -> Tensor:
    """Return `(L, L)`: |d loss of target s / d embedding u|, row s, column u; row 0 is 0."""
    lm = _language_model(probe)
    rows = [ids_L.new_zeros((1, len(ids_L)), dtype=torch.float64)]
    for s_C in _chunks(lm, len(ids_L), 1, ids_L.device):
        ids_CL = ids_L.expand(len(s_C), -1)
        labels_CL = torch.full_like(ids_CL, -100)
        labels_CL.scatter_(1, s_C.unsqueeze(1), ids_L[s_C].unsqueeze(1))
        with _leaf_embeddings(lm) as leaves:
            loss = probe(ids_CL, labels=labels_CL).loss
        (grad_CLD,) = torch.autograd.grad(loss, leaves)
        rows.append(grad_CLD.abs().amax(-1))
    return torch.cat(rows)
