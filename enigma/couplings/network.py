"""The network inside a coupling: a small multi-layer perceptron over one half of the stream."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from enigma.bijections.base import TokenContext
from enigma.couplings.settings import CouplingSettings
from enigma.layers.causal_conv import CausalConv
from enigma.layers.linear import Linear
from enigma.layers.norm import rms_normalise
from enigma.layers.squared_relu import squared_relu

__all__ = ["CouplingNetwork"]


class CouplingNetwork(nn.Module):
    """A multi-layer perceptron whose last layer starts at zero: a fresh block is the identity.

    Args:
        in_channels: width of the half that is read.
        out_channels: raw parameters that the coupling needs.
        hidden_channels: width of the hidden layers.
        settings: depth, activation, normalisation, convolution, biases, residual connections, and
            the width of conditioning features, which enter the first layer.
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden_channels: int, settings: CouplingSettings
    ) -> None:
        super().__init__()
        self.normalise = settings.normalise
        self.residual = settings.residual
        self.activate = squared_relu if settings.activation == "relu2" else functional.silu
        kernel_size = settings.kernel_size
        self.conv = CausalConv(in_channels, kernel_size) if kernel_size != 1 else None
        widths = [in_channels, *[hidden_channels] * settings.num_hidden_layers]
        self.hidden = nn.ModuleList(
            Linear(before, after, bias=settings.bias) for before, after in pairwise(widths)
        )
        features = settings.context_features
        self.features = Linear(features, hidden_channels) if features else None
        self.out = Linear(hidden_channels, out_channels, zero=True, bias=settings.bias)

    def forward(self, x: Tensor, context: TokenContext | None = None) -> Tensor:
        """Map `(..., L, in_channels)` to `(..., L, out_channels)`.

        Raises:
            ValueError: for a network with conditioning features and a context without.
        """
        h = rms_normalise(x) if self.normalise else x
        if self.conv is not None:
            h = self.conv(h, context)
        h = self.hidden[0](h)
        if self.features is not None:
            if context is None or context.features is None:
                raise ValueError(
                    f"expected {self.features.in_features} conditioning features, got none; to fix "
                    "this: give them as TokenContext.features"
                )
            h = h + self.features(context.features)
        for layer in self.hidden[1:]:
            change = layer(self.activate(h))
            h = h + change if self.residual else change
        y: Tensor = self.out(self.activate(h))
        return y
