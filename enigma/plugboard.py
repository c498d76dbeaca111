"""The plugboard: cables that swap pairs of channels.

The historical machine had 10 cables for 26 letters; a plugboard here has the same share.
A learnable plugboard is Q^-1 S Q, with S a fixed set of cables and Q a learned permutation. Q
chooses which channels are wired; the number of cables is fixed, so the plugboard remains an
involution that is never the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from enigma.bijections.base import Bijection, TokenContext
from enigma.simple_permutation import SimplePermutation

__all__ = ["HISTORICAL_SHARE", "Plugboard"]

HISTORICAL_SHARE = 10 / 26
"""Cables per letter on the historical machine."""


class Plugboard(Bijection):
    """An involution that swaps pairs of channels and leaves the others unchanged.

    It is never the identity: at least one cable is plugged in. It is a permutation, hence
    bit-exact, and its own inverse and transpose.

    Args:
        num_channels: width D, at least 2.
        num_pairs: cables, from 1 to D // 2; None takes the historical share, 10 for 26.
        learnable: learn which channels are wired, see `enigma.simple_permutation`.
        seed: of the choice of pairs.

    Raises:
        ValueError: for a width below 2 or a number of pairs out of range.

    Examples:
        >>> plugboard = Plugboard(num_channels=6, num_pairs=2)
        >>> x = torch.arange(6.0)
        >>> int((plugboard(x) != x).sum()), torch.equal(plugboard(plugboard(x)), x)
        (4, True)
    """

    partner: Tensor

    def __init__(
        self,
        num_channels: int,
        num_pairs: int | None = None,
        *,
        learnable: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_channels < 2:
            raise ValueError(f"num_channels must be at least 2 to swap a pair, got {num_channels}")
        if num_pairs is None:
            num_pairs = max(1, int(num_channels * HISTORICAL_SHARE))
        if not 1 <= num_pairs <= num_channels // 2:
            raise ValueError(
                f"num_pairs must be from 1 to {num_channels // 2} for {num_channels} channels, "
                f"got {num_pairs}"
            )
        self.num_channels = num_channels
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(num_channels, generator=generator, device="cpu")[: 2 * num_pairs]
        left, right = chosen.chunk(2)
        partner = torch.arange(num_channels, device="cpu")
        partner[left], partner[right] = right, left
        self.register_buffer("partner", partner)
        self.permutation = SimplePermutation(num_channels) if learnable else None

    def _forward(
        self,
        x: Tensor,
        context: TokenContext | None,  # noqa: ARG002 - the same at every token
    ) -> tuple[Tensor, Tensor]:
        """Swap the pairs; the log-determinant is 0."""
        if self.permutation is None:
            y = x.index_select(-1, self.partner)
        else:
            swapped = self.permutation(x).index_select(-1, self.partner)
            y = self.permutation(swapped, inverse=True)
        return y, x.new_zeros(x.shape[:-1])

    def _inverse(self, y: Tensor, context: TokenContext | None) -> tuple[Tensor, Tensor]:
        """Swap the pairs again."""
        return self._forward(y, context)
