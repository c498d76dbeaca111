"""The interface of every reversible part of the machine.

Shape legend, used in the whole package: B batch, L tokens, D channels (model width), H heads,
K channels per head, V vocabulary, P rotor positions, R rotors, N tokens of a flattened batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["Bijection", "ConvolutionCache", "KeyValueCache", "TokenContext"]


class KeyValueCache(Protocol):
    """What the model needs of a decoding cache; `transformers.DynamicCache` provides it."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens (dim -2) and return those of all tokens."""

    def get_seq_length(self) -> int:
        """Return how many tokens the cache holds."""


class ConvolutionCache:
    """Keeps the inputs of the convolutions over the tokens in a decoding cache.

    Each convolution of a forward pass takes the next slot of the cache, in the order of the calls,
    which is the same in every pass. The inputs are kept like keys, so whatever reorders or crops
    the keys (beam search, for example) does the same to them.

    Args:
        cache: the decoding cache.
        first_slot: the first layer of the cache that no attention layer uses.
    """

    def __init__(self, cache: KeyValueCache, first_slot: int) -> None:
        self._cache = cache
        self._slot = first_slot

    def extend(self, x_BLC: Tensor, num_earlier: int) -> Tensor:
        """Append L tokens and return them behind up to `num_earlier` earlier ones."""
        x_B1LC = x_BLC.unsqueeze(1)
        all_B1SC, _ = self._cache.update(x_B1LC, x_B1LC[..., :0], self._slot)
        self._slot += 1
        return all_B1SC[:, 0, -(x_BLC.shape[1] + num_earlier) :]


@dataclass(frozen=True)
class TokenContext:
    """Where the tokens of a tensor `(..., L, D)` stand in their texts, and what came before.

    A rotor's position is a function of the token's index alone, never of a counter that a
    call would change: so the map is causal, batched, cacheable and exactly invertible.

    Attributes:
        index: int64 `(L,)` or `(B, L)`, the index of each token in its text, from 0.
        mask: float `(B, L, 1)`, 0 at padding and 1 elsewhere, or None without padding.
        cache: inputs of the convolutions at earlier tokens, or None for a whole text.
        features: floating `(..., L, C)`, what conditions a density, or None.
    """

    index: Tensor
    mask: Tensor | None = None
    cache: ConvolutionCache | None = None
    features: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, start: int = 0) -> TokenContext:
        """Number the tokens of `x` `(..., L, D)` from `start`; a lone `(D,)` is one token."""
        length = x.shape[-2] if x.ndim > 1 else 1
        return cls(torch.arange(start, start + length, device=x.device))

    def advanced(self, steps: int) -> TokenContext:
        """Return the same tokens with the odometer turned `steps` further."""
        return replace(self, index=self.index + steps) if steps else self


class Bijection(nn.Module, ABC):
    """A map of `(..., L, D)` onto itself that is invertible at every token index.

    Subclasses define both directions with the log-determinant of each token's Jacobian.
    """

    @abstractmethod
    def forward_with_log_det(
        self, x: Tensor, context: TokenContext | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map `x` and return `(y, log_det)`.

        Args:
            x: floating `(..., L, D)`.
            context: the indices of the tokens; None numbers dim -2 from 0.

        Returns:
            `y` of the shape of `x`, and `log |det dy/dx|` in nats, of shape `x.shape[:-1]`.
        """

    @abstractmethod
    def inverse_with_log_det(
        self, y: Tensor, context: TokenContext | None = None
    ) -> tuple[Tensor, Tensor]:
        """Undo `forward_with_log_det`; the log-determinant is that of the inverse map."""

    def forward(self, x: Tensor, context: TokenContext | None = None) -> Tensor:
        """Map `x` `(..., L, D)` to `y` of the same shape."""
        return self.forward_with_log_det(x, context)[0]

    def inverse(self, y: Tensor, context: TokenContext | None = None) -> Tensor:
        """Return the `x` that `forward` maps to `y`."""
        return self.inverse_with_log_det(y, context)[0]
