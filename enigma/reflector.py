"""The reflector: a symmetric orthogonal map that is its own inverse.

Source: Householder, "Unitary Triangularization of a Nonsymmetric Matrix" (1958); the block
form is Schreiber and Parlett, "Block Reflectors: Theory and Computation" (1988), section 2. A
plane rotation as three shears: Paeth, "A Fast Algorithm for General Raster Rotation" (1986).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from enigma.bijections.base import Bijection, TokenContext
from enigma.bijections.exact import exact_add, laid_out

__all__ = ["Reflector"]


class Reflector(Bijection):
    """Mirror the channels in the complement of a learned subspace: I - 2 V (V^T V)^-1 V^T.

    Rank 1 is the Householder reflection I - 2 v v^T / v^T v.

    Args:
        num_channels: width D.
        rank: dimension r of the mirrored subspace, from 1 to D.
        exact: reflect by lifting on the grid of exact mode; reflecting twice then returns the
            same bits. Needs rank 1 and at least 2 channels.

    Raises:
        ValueError: for a rank out of range, or an exact reflector whose rank is not 1.

    Examples:
        >>> reflector = Reflector(num_channels=3)
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> torch.allclose(reflector(reflector(x)), x, atol=1e-5)
        True
    """

    def __init__(self, num_channels: int, rank: int = 1, *, exact: bool = False) -> None:
        super().__init__()
        if not 1 <= rank <= num_channels:
            raise ValueError(f"rank must be from 1 to num_channels={num_channels}, got {rank}")
        if exact and (rank != 1 or num_channels < 2):
            raise ValueError(
                f"an exact reflector needs rank 1 and at least 2 channels, got rank {rank} of "
                f"{num_channels}"
            )
        self.num_channels = num_channels
        self.exact = exact
        self.vectors = nn.Parameter(torch.empty(rank, num_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the directions from a normal distribution; almost surely independent."""
        nn.init.normal_(self.vectors)

    def _forward(
        self,
        x: Tensor,
        context: TokenContext | None,  # noqa: ARG002 - the same at every token
    ) -> tuple[Tensor, Tensor]:
        """Reflect `x`; |det| = 1, so the log-determinant is 0."""
        with torch.autocast(x.device.type, enabled=False):
            y = self._reflect_exactly(x) if self.exact else self._reflect(x)
        return y, x.new_zeros(x.shape[:-1])

    def _directions(self) -> Tensor:
        """Return the vectors, each with a largest entry of 1, in float32 or wider.

        Only their directions count, and the square of a short vector would underflow.
        """
        wide_RD = self.vectors.to(torch.promote_types(self.vectors.dtype, torch.float32))
        largest_R1 = wide_RD.detach().abs().amax(dim=1, keepdim=True)
        return wide_RD / largest_R1.clamp(min=torch.finfo(wide_RD.dtype).tiny)

    def _reflect(self, x: Tensor) -> Tensor:
        v_RD = self._directions()
        gram_RR = v_RD @ v_RD.T
        projector_RD = v_RD / gram_RR if len(gram_RR) == 1 else torch.linalg.solve(gram_RR, v_RD)
        wide = x.to(v_RD.dtype)
        return (wide - 2 * (wide @ v_RD.T) @ projector_RD).to(x.dtype)

    def _reflect_exactly(self, x: Tensor) -> Tensor:
        """Turn v onto the first axis, flip that axis, turn back.

        A turn is three shears. Each adds to one part a function of the other, so it can be undone
        bit for bit; with the flip in the middle the whole is an involution.
        """
        v = self._directions()[0]
        v = v / v.norm()
        v = torch.where(
            v[0] < 0, -v, v
        )  # v and -v give the same reflection; this turn is under 90 degrees
        sine = v[1:].norm().clamp(min=torch.finfo(v.dtype).tiny)
        axis = v[1:] / sine
        half_tangent = sine / (1 + v[0])
        first, rest = x[..., :1], x[..., 1:]
        first, rest = _turn(first, rest, axis, sine, half_tangent)
        first, rest = _turn(-first, rest, axis, -sine, -half_tangent)
        return torch.cat((first, rest), dim=-1)

    def _inverse(self, y: Tensor, context: TokenContext | None) -> tuple[Tensor, Tensor]:
        """Reflect again."""
        return self._forward(y, context)


def _turn(
    first: Tensor, rest: Tensor, axis: Tensor, sine: Tensor, half_tangent: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn in the plane of the first channel and `axis`; a negative angle undoes a positive."""
    first = exact_add(first, half_tangent * (laid_out(rest) @ axis).unsqueeze(-1))
    rest = exact_add(rest, -sine * first * axis)
    first = exact_add(first, half_tangent * (laid_out(rest) @ axis).unsqueeze(-1))
    return first, rest
