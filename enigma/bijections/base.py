"""The interface of every reversible part of the machine.

Shape legend, used in the whole package: B batch, L tokens, D channels (model width), H heads,
K channels per head, V vocabulary, P rotor positions, R rotors, N tokens of a flattened batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, overload

import torch
from torch import Tensor, nn

__all__ = ["Bijection", "ConvolutionCache", "KeyValueCache", "TokenContext", "total_log_det"]

Run: TypeAlias = Callable[..., tuple[Tensor, ...]]
"""Maps streams to as many streams."""


class KeyValueCache(Protocol):
    """What the model needs of a decoding cache; `transformers.DynamicCache` provides it."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens (dim -2) and return those of all tokens."""

    def get_seq_length(self) -> int:
        """Return how many tokens the cache holds."""


class ConvolutionCache:
    """Keeps the inputs of convolutions and the states of rotors in a decoding cache.

    Each of them takes the next slot of the cache, in the order of the calls, which is the same in
    every forward pass. What they keep of a token is kept like a key, so whatever reorders or crops
    the keys (beam search, for example) does the same to it.

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

    def latest(self, default_BC: Tensor) -> Tensor:
        """Return what the next slot keeps of the last token, or the default before the first."""
        none_B10C = default_BC[:, None, None][:, :, :0]
        all_B1SC, _ = self._cache.update(none_B10C, none_B10C[..., :0], self._slot)
        return all_B1SC[:, 0, -1] if all_B1SC.shape[2] else default_BC


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

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TokenContext:
        """Return the same tokens on a device, as accelerate moves the arguments of a module."""
        moved = partial(_moved, device=device, non_blocking=non_blocking)
        return replace(
            self,
            index=self.index.to(device, non_blocking=non_blocking),
            mask=moved(self.mask),
            features=moved(self.features),
        )

    def advanced(self, steps: int) -> TokenContext:
        """Return the same tokens with the odometer turned `steps` further."""
        return replace(self, index=self.index + steps) if steps else self


def _moved(
    tensor: Tensor | None, *, device: torch.device | str, non_blocking: bool
) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=non_blocking)


def total_log_det(x: Tensor, log_dets: Iterable[Tensor | None]) -> Tensor:
    """Return the sum per token of log-determinants `x.shape[:-1]`, of which None stands for 0."""
    found = [log_det for log_det in log_dets if log_det is not None]
    total = reduce(add, found) if found else x.new_zeros(x.shape[:-1])
    return total.to(torch.promote_types(total.dtype, x.dtype))


class Bijection(nn.Module, ABC):
    """A map of `(..., L, D)` onto itself that is invertible at every token index.

    Subclasses set `num_channels` and define both directions with the log-determinant of each
    token's Jacobian. Every public method is a call of the module, so that hooks fire, and whatever
    gathers or loads weights by hooks (FSDP, offloading) finds every use.

    Attributes:
        num_channels: width D.
    """

    num_channels: int

    @abstractmethod
    def _forward(self, x: Tensor, context: TokenContext | None) -> tuple[Tensor, Tensor]:
        """Return `y` and `log |det dy/dx|` of each token; see `forward`."""

    @abstractmethod
    def _inverse(self, y: Tensor, context: TokenContext | None) -> tuple[Tensor, Tensor]:
        """Undo `_forward`; the log-determinant is that of the inverse map."""

    if TYPE_CHECKING:

        @overload
        def __call__(
            self,
            x: Tensor,
            context: TokenContext | None = None,
            *,
            inverse: bool = False,
            log_det: Literal[False] = False,
            run: Run | None = None,
        ) -> Tensor: ...
        @overload
        def __call__(
            self,
            x: Tensor,
            context: TokenContext | None = None,
            *,
            inverse: bool = False,
            log_det: Literal[True],
        ) -> tuple[Tensor, Tensor]: ...
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Call `forward` and the hooks."""

    def forward(
        self,
        x: Tensor,
        context: TokenContext | None = None,
        *,
        inverse: bool = False,
        log_det: bool = False,
        run: Run | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Map `x`, or map it back.

        Args:
            x: floating `(..., L, D)`.
            context: the indices of the tokens; None numbers dim -2 from 0.
            inverse: apply the inverse map.
            log_det: return the log-determinant too.
            run: computes the same map step by step, see `enigma.reversible`; called instead.

        Returns:
            `y` of the shape of `x`; with `log_det` also `log |det dy/dx|` in nats, of shape
            `x.shape[:-1]`.

        Raises:
            ValueError: for another width than D.
        """
        if x.shape[-1:] != (self.num_channels,):
            raise ValueError(f"expected (..., {self.num_channels}), got {tuple(x.shape)}")
        if run is not None:
            return run(x)[0]
        mapped = self._inverse(x, context) if inverse else self._forward(x, context)
        return mapped if log_det else mapped[0]

    def inverse(self, y: Tensor, context: TokenContext | None = None) -> Tensor:
        """Return the `x` that `forward` maps to `y`."""
        return self(y, context, inverse=True)

    def forward_with_log_det(
        self, x: Tensor, context: TokenContext | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map `x` and return `(y, log_det)`; see `forward`."""
        return self(x, context, log_det=True)

    def inverse_with_log_det(
        self, y: Tensor, context: TokenContext | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map `y` back and return `(x, log_det)`, the log-determinant of the inverse map."""
        return self(y, context, inverse=True, log_det=True)
