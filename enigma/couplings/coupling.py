"""The networks inside a reversible block, and the ways in which they move a half of the stream.

A coupling is y = h(x; net(other half)): whatever the network is, the map is invertible.
Sources: additive, Dinh et al., NICE (2014), section 3.2; affine, Dinh et al., Real NVP (2017),
equations 7 and 8; spline, see `enigma.couplings.spline`. An affine spline shifts and scales a half
before its splines bend it: a spline alone moves nothing outside of its domain.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from enigma.bijections.base import Tokens
from enigma.bijections.exact import exact_add, laid_out
from enigma.couplings.spline import num_spline_parameters, spline_forward, spline_inverse
from enigma.layers.causal_conv import CausalConv
from enigma.layers.linear import Linear
from enigma.layers.norm import rms_normalise
from enigma.layers.squared_relu import squared_relu

__all__ = ["COUPLINGS", "Activation", "Coupling", "CouplingKind", "CouplingNetwork"]

CouplingKind = Literal["additive", "affine", "spline", "affine-spline"]
Activation = Literal["relu2", "silu"]
COUPLINGS: tuple[CouplingKind, ...] = get_args(CouplingKind)

_MAX_AFFINE_LOG_SCALE = 2.0


class CouplingNetwork(nn.Module):
    """A small multi-layer perceptron, zero at the start so that a fresh block is the identity.

    Args:
        in_channels: width of the half that is read.
        out_channels: numbers that the coupling needs.
        hidden_channels: width of the hidden layers.
        num_hidden_layers: hidden layers, at least 1.
        activation: "relu2" (squared ReLU, for the language model) or "silu" (smooth, for flows).
        normalise: RMS-normalise the input. Right for a residual stream, whose size grows with
            depth; wrong for a flow, where the size of a half is information.
        kernel_size: taps of a causal depthwise convolution over the tokens in front of the first
            layer; 1 for none.
        bias: give every layer a bias. A network without one is 0 where its input is 0, which a
            residual stream does not mind and a density does.
        residual: add what every hidden layer after the first makes to what it reads (He et al.,
            "Identity Mappings in Deep Residual Networks", 2016): the activation then comes first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        *,
        num_hidden_layers: int = 1,
        activation: Activation = "relu2",
        normalise: bool = True,
        kernel_size: int = 1,
        bias: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if activation not in {"relu2", "silu"}:
            raise ValueError(f"activation must be 'relu2' or 'silu', got {activation!r}")
        if num_hidden_layers < 1 or hidden_channels < 1:
            raise ValueError(
                "a coupling network needs at least one hidden layer of at least one channel, got "
                f"{num_hidden_layers} layers of {hidden_channels}"
            )
        self.activation = activation
        self.normalise = normalise
        self.residual = residual
        self.conv = CausalConv(in_channels, kernel_size) if kernel_size != 1 else None
        widths = [in_channels, *[hidden_channels] * num_hidden_layers]
        self.hidden = nn.ModuleList(
            Linear(before, after, bias=bias) for before, after in pairwise(widths)
        )
        self.out = Linear(hidden_channels, out_channels, zero=True, bias=bias)

    def forward(self, x: Tensor, tokens: Tokens | None = None) -> Tensor:
        """Map `(..., L, in_channels)` to `(..., L, out_channels)`."""
        h = rms_normalise(x) if self.normalise else x
        if self.conv is not None:
            h = self.conv(h, tokens)
        h = self.hidden[0](h)
        for layer in self.hidden[1:]:
            change = layer(self._activate(h))
            h = h + change if self.residual else change
        y: Tensor = self.out(self._activate(h))
        return y

    def _activate(self, h: Tensor) -> Tensor:
        return squared_relu(h) if self.activation == "relu2" else functional.silu(h)


class Coupling(nn.Module):
    """Move one half of the stream by a function of the other half.

    Args:
        moved_channels: width of the half that moves.
        read_channels: width of the half that is read.
        kind: "additive" (volume-preserving), "affine", "spline" or "affine-spline".
        hidden_channels: width of the network.
        num_hidden_layers: depth of the network.
        activation: see `CouplingNetwork`.
        normalise: see `CouplingNetwork`.
        kernel_size: see `CouplingNetwork`.
        bias: see `CouplingNetwork`.
        residual: see `CouplingNetwork`.
        num_bins: bins of a spline, at least 2.
        bound: half the domain of a spline; standardised data lies within 5.
        exact: round what an additive coupling adds to the grid of exact mode; the inverse is
            then bit-exact.

    Raises:
        ValueError: for an unknown kind, an exact one that is not additive, or a spline of one bin.
    """

    def __init__(
        self,
        moved_channels: int,
        read_channels: int,
        kind: CouplingKind,
        hidden_channels: int,
        *,
        num_hidden_layers: int = 1,
        activation: Activation = "relu2",
        normalise: bool = True,
        kernel_size: int = 1,
        bias: bool = False,
        residual: bool = False,
        num_bins: int = 8,
        bound: float = 5.0,
        exact: bool = False,
    ) -> None:
        super().__init__()
        if kind not in COUPLINGS:
            raise ValueError(f"coupling must be one of {COUPLINGS}, got {kind!r}")
        if exact and kind != "additive":
            raise ValueError(f"only an additive coupling can be exact, got {kind!r}")
        if kind.endswith("spline") and num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, got {num_bins}")
        self.kind = kind
        self.exact = exact
        self.num_bins = num_bins
        self.bound = bound
        # Of the affine map (of what is added, where that is all), and of a spline.
        self.numbers_a_channel = (
            {"additive": 1, "spline": 0}.get(kind, 2),
            num_spline_parameters(num_bins) if kind.endswith("spline") else 0,
        )
        self.network = CouplingNetwork(
            read_channels,
            moved_channels * sum(self.numbers_a_channel),
            hidden_channels,
            num_hidden_layers=num_hidden_layers,
            activation=activation,
            normalise=normalise,
            kernel_size=kernel_size,
            bias=bias,
            residual=residual,
        )

    def forward(
        self, moved: Tensor, read: Tensor, tokens: Tokens | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the moved half and its log-determinant a token (None when it is 0)."""
        raw = self.numbers(read, tokens).to(moved.dtype)
        if self.kind == "additive":
            return (exact_add(moved, raw) if self.exact else moved + raw), None
        log_det = moved.new_zeros(moved.shape[:-1])
        raw_affine, raw_splines = self._parts(raw)
        if self.kind != "spline":
            shift, log_scale = _shift_and_log_scale(raw_affine)
            moved, log_det = moved * log_scale.exp() + shift, log_scale.sum(-1)
        if self.kind != "affine":
            moved, log_slope = spline_forward(moved, raw_splines, self.num_bins, self.bound)
            log_det = log_det + log_slope.sum(-1)
        return moved, log_det

    def numbers(self, read: Tensor, tokens: Tokens | None = None) -> Tensor:
        """Return what the network makes of `read`; for an additive coupling, what is added.

        Under autocast it is in half precision. The stream keeps its own dtype: one in bfloat16
        does not invert.
        """
        raw: Tensor = self.network(laid_out(read) if self.exact else read, tokens)
        return raw

    def inverse(
        self, moved: Tensor, read: Tensor, tokens: Tokens | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Undo `forward` for the same `read` half; the log-determinant is the inverse's."""
        raw = self.numbers(read, tokens).to(moved.dtype)
        if self.kind == "additive":
            return (exact_add(moved, raw, -1) if self.exact else moved - raw), None
        log_det = moved.new_zeros(moved.shape[:-1])
        raw_affine, raw_splines = self._parts(raw)
        if self.kind != "affine":
            moved, log_slope = spline_inverse(moved, raw_splines, self.num_bins, self.bound)
            log_det = log_slope.sum(-1)
        if self.kind != "spline":
            shift, log_scale = _shift_and_log_scale(raw_affine)
            moved, log_det = (moved - shift) * (-log_scale).exp(), log_det - log_scale.sum(-1)
        return moved, log_det

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return (..., 2 D) numbers of the affine map and (..., 3 K - 1, D) of the splines."""
        affine, splines = self.numbers_a_channel
        channels = raw.shape[-1] // (affine + splines)
        raw_affine, raw_splines = torch.split(raw, [affine * channels, splines * channels], dim=-1)
        return raw_affine, raw_splines.reshape(*raw.shape[:-1], splines, channels)


def _shift_and_log_scale(raw: Tensor) -> tuple[Tensor, Tensor]:
    shift, raw_scale = raw.chunk(2, dim=-1)
    bound = _MAX_AFFINE_LOG_SCALE
    return shift, bound * torch.tanh(raw_scale / bound)
