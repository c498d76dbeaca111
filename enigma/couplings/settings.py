"""The settings of a coupling, as one object that is built once and handed down."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict, Unpack, get_args

__all__ = ["COUPLINGS", "Activation", "CouplingKind", "CouplingOptions", "CouplingSettings"]

CouplingKind = Literal["additive", "affine", "spline", "affine-spline"]
Activation = Literal["relu2", "silu"]
COUPLINGS: tuple[CouplingKind, ...] = get_args(CouplingKind)


class CouplingOptions(TypedDict, total=False):
    """The fields of `CouplingSettings` but the kind, as keyword arguments of a constructor."""

    hidden_channels: int | None
    num_hidden_layers: int
    activation: Activation
    normalise: bool
    kernel_size: int
    bias: bool
    residual: bool
    num_bins: int
    bound: float
    exact: bool
    context_features: int


@dataclass(frozen=True, kw_only=True)
class CouplingSettings:
    """How a coupling moves one half of the stream, and the network that decides it.

    Attributes:
        kind: "additive" (volume-preserving; the language model), or for a flow "affine",
            "spline" or "affine-spline".
        hidden_channels: width of the network's hidden layers; None takes twice the width of the
            stream.
        num_hidden_layers: hidden layers of the network, at least 1.
        activation: "relu2" (squared ReLU, for the language model) or "silu" (smooth, for flows).
        normalise: RMS-normalise the input. Right for a residual stream, whose size grows with
            depth; wrong for a flow, where the size of a half is information.
        kernel_size: taps of a causal depthwise convolution over the tokens in front of the first
            layer; 1 for none.
        bias: give every layer a bias. A network without one is 0 where its input is 0, which is
            harmless in a residual stream but not in a density.
        residual: add the output of every hidden layer after the first to its input (He et al.,
            "Identity Mappings in Deep Residual Networks", 2016): the activation then comes first.
        num_bins: bins of a spline, 2 to 99.
        bound: half the domain of a spline; standardised data lies within 5.
        exact: round what an additive coupling adds to the grid of exact mode; the inverse is then
            bit-exact.
        context_features: width of the features that condition a density, 0 for none; every
            network reads them from `TokenContext.features`.

    Raises:
        ValueError: for an unknown kind or activation, a network without a hidden layer, a negative
            width, or an exact coupling that is not additive.

    Examples:
        >>> CouplingSettings.of("affine", bias=True).hidden_channels is None
        True
    """

    kind: CouplingKind = "additive"
    hidden_channels: int | None = None
    num_hidden_layers: int = 1
    activation: Activation = "relu2"
    normalise: bool = True
    kernel_size: int = 1
    bias: bool = False
    residual: bool = False
    num_bins: int = 8
    bound: float = 5.0
    exact: bool = False
    context_features: int = 0

    def __post_init__(self) -> None:
        if self.kind not in COUPLINGS:
            raise ValueError(f"coupling must be one of {COUPLINGS}, got {self.kind!r}")
        if self.exact and self.kind != "additive":
            raise ValueError(f"only an additive coupling can be exact, got {self.kind!r}")
        if self.activation not in get_args(Activation):
            raise ValueError(
                f"activation must be one of {get_args(Activation)}, got {self.activation!r}"
            )
        if self.num_hidden_layers < 1 or (self.hidden_channels or 1) < 1:
            raise ValueError(
                "a coupling network needs at least one hidden layer of at least one channel, got "
                f"{self.num_hidden_layers} layers of {self.hidden_channels}"
            )

        if self.context_features < 0:
            raise ValueError(f"context_features must not be negative, got {self.context_features}")

    @classmethod
    def of(
        cls, coupling: CouplingKind | CouplingSettings, **options: Unpack[CouplingOptions]
    ) -> CouplingSettings:
        """Return settings that are given whole, or make them from a kind and options.

        Raises:
            ValueError: for settings that are given whole and options beside them.
        """
        if not isinstance(coupling, CouplingSettings):
            return cls(kind=coupling, **options)
        if options:
            raise ValueError(
                f"expected CouplingSettings alone, got {sorted(options)} beside them; to fix this: "
                "set these in the settings"
            )
        return coupling

    def to_arguments(self) -> dict[str, Any]:
        """Return the settings as keyword arguments of `RevBlock` and `Enigma`, for a JSON file."""
        options = asdict(self)
        return {"coupling": options.pop("kind"), **options}
