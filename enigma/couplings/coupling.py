"""A coupling moves one half of the stream by what a network makes of the other half.

It is y = h(x; net(other half)) with an invertible h: the map can be undone whatever the network
is.
"""

from __future__ import annotations

from torch import Tensor, nn

from enigma.bijections.base import TokenContext
from enigma.bijections.exact import laid_out
from enigma.couplings.network import CouplingNetwork
from enigma.couplings.settings import CouplingSettings
from enigma.couplings.spline import RationalQuadraticSpline
from enigma.couplings.transforms import Affine, Shift, Transform

__all__ = ["Coupling", "transform_of"]


def transform_of(settings: CouplingSettings) -> Transform:
    """Return how a coupling of these settings moves a channel.

    An affine spline shifts and scales before its spline bends: a spline alone moves nothing
    outside its domain.

    Raises:
        ValueError: for a spline of one bin or of too many.
    """
    if settings.kind == "additive":
        return Shift(settings.exact)
    if settings.kind == "affine":
        return Affine()
    affine = Affine() if settings.kind == "affine-spline" else None
    return RationalQuadraticSpline(settings.num_bins, settings.bound, affine=affine)


class Coupling(nn.Module):
    """Move one half of the stream by a function of the other half.

    Args:
        moved_channels: width of the half that moves.
        read_channels: width of the half that is read.
        settings: how it moves, and the network that decides it.

    Raises:
        ValueError: for a spline of one bin or of too many, or a convolution of no tap.
    """

    def __init__(self, moved_channels: int, read_channels: int, settings: CouplingSettings) -> None:
        super().__init__()
        self.exact = settings.exact
        self.transform = transform_of(settings)
        self.network = CouplingNetwork(
            read_channels,
            moved_channels * self.transform.num_parameters,
            settings.hidden_channels or 2 * (moved_channels + read_channels),
            settings,
        )

    def forward(self, read: Tensor, context: TokenContext | None = None) -> Tensor:
        """Return the transform's raw parameters; for an additive coupling, what is added.

        Under autocast they are in half precision. The stream keeps its own dtype: one in bfloat16
        does not invert.
        """
        raw: Tensor = self.network(laid_out(read) if self.exact else read, context)
        return raw

    def move(
        self, moved: Tensor, read: Tensor, context: TokenContext | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the moved half and its log-determinant per token (None where it is 0)."""
        return self.transform.forward(moved, self(read, context).to(moved.dtype))

    def move_back(
        self, moved: Tensor, read: Tensor, context: TokenContext | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Undo `move` for the same `read` half; the log-determinant is the inverse's."""
        return self.transform.inverse(moved, self(read, context).to(moved.dtype))
