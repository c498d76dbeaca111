"""Invertible maps of single channels, which couplings are composed of.

Sources: shift, Dinh et al., NICE (2014), section 3.2; affine, Dinh et al., Real NVP (2017),
equations 7 and 8; spline, see `enigma.couplings.spline`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from enigma.bijections.exact import exact_add

__all__ = ["Affine", "Shift", "Transform"]


class Transform(ABC):
    """A monotonic map of every channel by raw parameters, which a network may choose freely.

    Of the raw parameters `(..., num_parameters * D)` the first D are one for each channel, then
    come the second D, and so on. Zeros give the identity.

    Attributes:
        num_parameters: raw parameters per channel.
    """

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Raw parameters per channel."""

    @abstractmethod
    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map `x` `(..., D)` by `raw` `(..., num_parameters * D)`.

        Returns:
            `y` `(..., D)`, and `log |det dy/dx|` in nats `(...)`, or None where it is 0.
        """

    @abstractmethod
    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Undo `forward`; the log-determinant is that of the inverse map."""


@dataclass(frozen=True)
class Shift(Transform):
    """y = x + raw.

    Attributes:
        exact: add on the grid of exact mode.
    """

    exact: bool = False
    num_parameters = 1

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, None]:
        """Add; see the base class."""
        return (exact_add(x, raw) if self.exact else x + raw), None

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, None]:
        """Subtract; see the base class."""
        return (exact_add(y, raw, -1) if self.exact else y - raw), None


@dataclass(frozen=True)
class Affine(Transform):
    """y = exp(s) x + t, with the log-scale s soft-clamped by tanh.

    Attributes:
        max_log_scale: bound of |s| in nats.
    """

    max_log_scale: float = 2.0
    num_parameters = 2

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift; see the base class."""
        shift, log_scale = self._shift_and_log_scale(raw)
        return x * log_scale.exp() + shift, log_scale.sum(-1)

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale back; see the base class."""
        shift, log_scale = self._shift_and_log_scale(raw)
        return (y - shift) * (-log_scale).exp(), -log_scale.sum(-1)

    def _shift_and_log_scale(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw_scale = raw.chunk(2, dim=-1)
        bound = self.max_log_scale
        return shift, bound * torch.tanh(raw_scale / bound)
