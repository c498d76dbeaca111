"""The reflector: a symmetric orthogonal map that is its own inverse.

Source: Householder, "Unitary Triangularization of a Nonsymmetric Matrix" (1958); the block
form is Schreiber and Parlett, "Block Reflectors: Theory and Computation" (1988), section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from enigma.bijection import Bijection, Tokens

__all__ = ["Reflector"]


class Reflector(Bijection):
    """Mirror the channels in the complement of a learned subspace: I - 2 V (V^T V)^-1 V^T.

    Rank 1 is the Householder reflection I - 2 v v^T / v^T v.

    Args:
        num_channels: width D.
        rank: dimension r of the mirrored subspace, from 1 to D.

    Raises:
        ValueError: for a rank out of range.

    Example:
        >>> reflector = Reflector(num_channels=3)
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> torch.allclose(reflector(reflector(x)), x, atol=1e-5)
        True
    """

    def __init__(self, num_channels: int, rank: int = 1) -> None:
        super().__init__()
        if not 1 <= rank <= num_channels:
            raise ValueError(f"rank must be from 1 to num_channels={num_channels}, got {rank}")
        self.vectors = nn.Parameter(torch.empty(rank, num_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the directions from a normal distribution; almost surely independent."""
        nn.init.normal_(self.vectors)

    def forward_with_log_det(
        self,
        x: Tensor,
        tokens: Tokens | None = None,  # noqa: ARG002 - the same at every token
    ) -> tuple[Tensor, Tensor]:
        """Reflect `x`; |det| = 1, so the log-determinant is 0."""
        with torch.autocast(x.device.type, enabled=False):
            gram = self.vectors @ self.vectors.T
            projector = torch.linalg.solve(gram, self.vectors)
            y = x - 2 * (x @ self.vectors.T) @ projector
        return y, x.new_zeros(x.shape[:-1])

    def inverse_with_log_det(
        self, y: Tensor, tokens: Tokens | None = None
    ) -> tuple[Tensor, Tensor]:
        """Reflect again."""
        return self.forward_with_log_det(y, tokens)
