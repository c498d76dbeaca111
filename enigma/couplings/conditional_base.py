"""The last step of a density: a base that depends on the context, or one of a single channel."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from enigma.couplings.coupling import transform_of
from enigma.couplings.network import CouplingNetwork
from enigma.couplings.settings import CouplingSettings

__all__ = ["ConditionalBase"]


class ConditionalBase(nn.Module):
    """Move every channel by what a network makes of the context; the identity at the start.

    With affine couplings this gives a normal base the mean and scale that the context asks for.
    Without a context the raw parameters are learned themselves.

    Args:
        num_channels: D.
        settings: kind of the transform, width of the context, and the network that reads it.

    Examples:
        >>> base = ConditionalBase(2, CouplingSettings(kind="affine", context_features=3))
        >>> base(torch.zeros(5, 2), torch.ones(5, 3))[0].shape
        torch.Size([5, 2])
    """

    def __init__(self, num_channels: int, settings: CouplingSettings) -> None:
        super().__init__()
        self.transform = transform_of(settings)
        num_raw = num_channels * self.transform.num_parameters
        features = settings.context_features
        self.raw = None if features else nn.Parameter(torch.zeros(num_raw))
        hidden_channels = settings.hidden_channels or 2 * (num_channels + features)
        plain = replace(settings, context_features=0, kernel_size=1, exact=False)
        self.network = (
            CouplingNetwork(features, num_raw, hidden_channels, plain) if features else None
        )

    def forward(
        self, x: Tensor, features: Tensor | None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Map `x` `(..., D)` by `features` `(..., C)`; see `Transform` for what is returned."""
        raw: Tensor = self.raw if self.network is None else self.network(features)  # type: ignore[assignment]
        # The network may run in bf16 under autocast, in which exp(s) exp(-s) is not 1.
        raw = raw.to(x.dtype).expand(*x.shape[:-1], -1)
        y, log_det = (self.transform.inverse if inverse else self.transform.forward)(x, raw)
        return y, x.new_zeros(x.shape[:-1]) if log_det is None else log_det
