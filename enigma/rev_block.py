"""The reversible block: two couplings, so that both halves of the stream move.

Source: Gomez et al., "The Reversible Residual Network" (2017), equations 6 and 7:
y1 = x1 + f(x2), y2 = x2 + g(y1); the inverse is x2 = y2 - g(y1), x1 = y1 - f(x2).
"""

from __future__ import annotations

from functools import partial
from typing import Unpack

import torch
from torch import Tensor

from enigma.bijections.base import Bijection, TokenContext, total_log_det
from enigma.bijections.step_groups import StepGroup
from enigma.couplings.coupling import Coupling
from enigma.couplings.settings import CouplingKind, CouplingOptions, CouplingSettings
from enigma.reversible import CouplingStep

__all__ = ["RevBlock"]


class RevBlock(Bijection):
    """Two couplings over the halves of the channels.

    Args:
        num_channels: width D, at least 2; an odd width makes unequal halves.
        coupling: the kind of coupling, or all settings as one object.
        **options: fields of `CouplingSettings`, beside a kind.

    Raises:
        ValueError: for a width below 2, or settings that `CouplingSettings` refuses.

    Examples:
        >>> block = RevBlock(num_channels=6, coupling="affine")
        >>> x = torch.ones(2, 3, 6)
        >>> torch.equal(block.inverse(block(x)), x)
        True
    """

    def __init__(
        self,
        num_channels: int,
        coupling: CouplingKind | CouplingSettings = "additive",
        **options: Unpack[CouplingOptions],
    ) -> None:
        super().__init__()
        settings = CouplingSettings.of(coupling, **options)
        if num_channels < 2:
            raise ValueError(f"num_channels must be at least 2 to be halved, got {num_channels}")
        self.num_channels = num_channels
        self.coupling = settings.kind
        self.exact = settings.exact
        self.widths = [num_channels // 2, num_channels - num_channels // 2]
        first, second = self.widths
        self.f = Coupling(first, second, settings)
        self.g = Coupling(second, first, settings)

    def _forward(self, x: Tensor, context: TokenContext | None) -> tuple[Tensor, Tensor]:
        """Move the first half, then the second."""
        x1, x2 = torch.split(x, self.widths, dim=-1)
        y1, log_det_f = self.f.move(x1, x2, context)
        y2, log_det_g = self.g.move(x2, y1, context)
        return torch.cat((y1, y2), dim=-1), total_log_det(x, (log_det_f, log_det_g))

    def _inverse(self, y: Tensor, context: TokenContext | None) -> tuple[Tensor, Tensor]:
        """Move the second half back, then the first."""
        y1, y2 = torch.split(y, self.widths, dim=-1)
        x2, log_det_g = self.g.move_back(y2, y1, context)
        x1, log_det_f = self.f.move_back(y1, x2, context)
        return torch.cat((x1, x2), dim=-1), total_log_det(y, (log_det_f, log_det_g))

    def step(self, context: TokenContext, stream: int) -> StepGroup:
        """Return an additive block as a step over the halves of one stream, in a call of it.

        Args:
            context: which tokens the stream holds.
            stream: the number of the stream.
        """
        step = CouplingStep(
            (partial(self.f, context=context), (self.f,)),
            (partial(self.g, context=context), (self.g,)),
            stream_numbers=(stream,),
            widths=self.widths,
            exact=self.exact,
        )
        return StepGroup([step], step.stream_numbers, partial(self, context=context))
