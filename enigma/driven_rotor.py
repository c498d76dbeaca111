"""A rotor that the text drives: every token turns it, and the setting reads what came before.

In geometric algebra a rotor is a product of reflections (Doran and Lasenby, "Geometric Algebra for
Physicists", 2003, section 4.2). Token t gives each head R directions u, hence the map
R_t = H(u_R) ... H(u_1) with the Householder reflections H(u) = I - 2 u u^T. After t tokens the
setting is P_t = R_t ... R_1, exactly orthogonal, and the state is P_t z with a learned start z.
Products of this kind follow any finite group of permutations, which neither attention nor a
diagonal recurrence of fixed depth does (Merrill et al., "The Illusion of State in State-Space
Models", 2024; Siems et al., "DeltaProduct", 2025).

A chunk of reflections is computed at once, in the compact WY form (Schreiber and Van Loan, 1989):
H_n ... H_1 = I - 2 sum_i u_i y_i^T, where the y_i solve a unit lower triangular system.

Legend: B batch, H heads, K channels per head, R reflections per token, C chunks, T tokens of a
chunk, N = T R reflections of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from enigma.bijections.base import TokenContext
from enigma.bijections.step_groups import StepGroup
from enigma.layers.linear import Linear
from enigma.layers.mixing_layer import MixingLayer

__all__ = ["DrivenRotor", "RotorLayer", "turn"]

_CHUNK = 4
"""Tokens of a chunk: the triangular systems grow with it, the steps between chunks shrink. On a CPU
a chunk of 16 takes three times as long."""
_STIR = 0.05
"""How far the directions of a pair are apart at the start, of their length."""


def turn(start_BHK: Tensor, directions_BHLRK: Tensor) -> Tensor:
    """Return a vector after each token's reflections: P_t z for t = 1 ... L.

    Args:
        start_BHK: floating, the state z before the first token.
        directions_BHLRK: of unit length; a zero in place of a direction reflects nothing.

    Returns:
        `(B, H, L, K)`; each state is as long as the start, to rounding.

    Examples:
        >>> swap = torch.tensor([1.0, -1.0]) / 2**0.5
        >>> turn(torch.tensor([[[3.0, 4.0]]]), swap.expand(1, 1, 2, 1, 2)).round().tolist()
        [[[[4.0, 3.0], [3.0, 4.0]]]]
    """
    if not directions_BHLRK.numel():
        return directions_BHLRK[:, :, :, 0]
    length = directions_BHLRK.shape[2]
    chunk = 1 if length == 1 else _CHUNK
    missing = -length % chunk
    padded = functional.pad(directions_BHLRK, (0, 0, 0, 0, 0, missing))
    batch, heads, _, reflections, channels = padded.shape
    u_BHCNK = padded.reshape(batch, heads, -1, chunk * reflections, channels)
    y_BHCNK = _compact(u_BHCNK)
    # What a whole chunk does: H_n ... H_1 = I - 2 sum_i u_i y_i^T.
    chunk_BHCKK = torch.eye(channels).to(u_BHCNK) - 2 * u_BHCNK.mT @ y_BHCNK
    starts, z_BHK = [], start_BHK
    size = torch.linalg.vector_norm(start_BHK, dim=-1, keepdim=True)
    for chunk_BHKK in chunk_BHCKK.unbind(2):
        starts.append(z_BHK)
        # A rotation keeps lengths; rounding does not, and texts are long.
        z_BHK = functional.normalize(_times(chunk_BHKK, z_BHK), dim=-1) * size
    z_BHCK = torch.stack(starts, dim=2)
    moved_BHCNK = -2 * _times(y_BHCNK, z_BHCK).unsqueeze(-1) * u_BHCNK
    moved_BHLRK = moved_BHCNK.reshape(padded.shape)
    moved_BHCTK = moved_BHLRK.sum(dim=3).reshape(batch, heads, -1, chunk, channels).cumsum(dim=3)
    return (z_BHCK.unsqueeze(3) + moved_BHCTK).flatten(2, 3)[:, :, :length]


def _compact(u_BHCNK: Tensor) -> Tensor:
    """Return the y_i of the WY form: y_i = u_i - 2 sum over j < i of (u_i . u_j) y_j."""
    system_BHCNN = (2 * u_BHCNK @ u_BHCNK.mT).tril(-1)
    y_BHCNK: Tensor = torch.linalg.solve_triangular(
        system_BHCNN, u_BHCNK, upper=False, unitriangular=True
    )
    return y_BHCNK


def _times(matrix: Tensor, z: Tensor) -> Tensor:
    """Return the products of matrices `(..., N, K)` with vectors `(..., K)`."""
    return torch.matmul(matrix, z.unsqueeze(-1)).squeeze(-1)


class DrivenRotor(nn.Module):
    """Map tokens to the states of rotors that they drive.

    At the start the directions of a token come in nearly equal pairs: every rotor stands still.

    Args:
        d: width D.
        channels: of a rotor, K; D / K rotors turn side by side.
        reflections: per token and rotor, R; even. 2 are a rotation in a plane; 4 follow every
            permutation of 5 things.

    Raises:
        ValueError: for channels that do not divide the width, or an odd number of reflections.

    Examples:
        >>> DrivenRotor(d=16)(torch.ones(2, 5, 16)).shape
        torch.Size([2, 5, 16])
    """

    def __init__(self, d: int, channels: int = 8, reflections: int = 4) -> None:
        super().__init__()
        if channels < 2 or d % channels:
            raise ValueError(f"rotor_channels must be at least 2 and divide d={d}, got {channels}")
        if reflections < 2 or reflections % 2:
            raise ValueError(f"rotor_reflections must be even and at least 2, got {reflections}")
        self.channels = channels
        self.reflections = reflections
        self.drive = Linear(d, d * reflections)
        self.start = nn.Parameter(torch.empty(d // channels, channels))
        self.out = Linear(d, d, zero=True)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the states before the first token, and pair the directions.

        The layers inside are reset before, as by their own constructors.
        """
        nn.init.normal_(self.start)
        first, second = self.drive.weight.view(-1, 2, self.channels, self.start.numel()).unbind(1)
        second.mul_(_STIR).add_(first)

    def forward(self, x_BLD: Tensor, context: TokenContext | None = None) -> Tensor:
        """Return what the states after each token say, `(B, L, D)`.

        Args:
            x_BLD: floating `(B, L, D)`.
            context: of these L tokens; None for whole texts without padding. Padding turns nothing;
                a cache holds the states of earlier tokens.
        """
        context = TokenContext.of(x_BLD) if context is None else context
        # Rounding adds up over a text: bf16 would lose the state after a few dozen tokens.
        with torch.autocast(x_BLD.device.type, enabled=False):
            wide = torch.promote_types(self.start.dtype, torch.float32)
            u_BHLRK = self._directions(x_BLD, context.mask, wide)
            state_BHLK = turn(self._start(context, x_BLD.shape[0]).to(wide), u_BHLRK)
        state_BLD = state_BHLK.transpose(1, 2).flatten(2).to(x_BLD.dtype)
        if context.cache is not None:
            context.cache.extend(state_BLD, 0)
        y_BLD: Tensor = self.out(state_BLD)
        return y_BLD

    def _directions(self, x_BLD: Tensor, mask_BL1: Tensor | None, dtype: torch.dtype) -> Tensor:
        # Of length 1 in that dtype: a map along any other is no reflection.
        driven_BLE = self.drive(x_BLD.to(self.drive.weight.dtype)).to(dtype)
        sizes = (*x_BLD.shape[:2], self.start.shape[0], self.reflections, self.channels)
        u_BLHRK = functional.normalize(driven_BLE.view(sizes), dim=-1)
        if mask_BL1 is not None:
            u_BLHRK = u_BLHRK * mask_BL1[..., None, None].to(dtype)
        return u_BLHRK.transpose(1, 2)

    def _start(self, context: TokenContext, batch: int) -> Tensor:
        """Return the state before the first of the tokens, of entries about 1."""
        fresh_HK = functional.normalize(self.start, dim=-1) * self.channels**0.5
        start_BHK: Tensor = fresh_HK.expand(batch, -1, -1)
        if context.cache is not None:
            start_BHK = context.cache.latest(start_BHK.flatten(1)).view(start_BHK.shape)
        return start_BHK


class RotorLayer(MixingLayer):
    """A reversible layer whose tokens are mixed by driven rotors, over two streams of width D.

    Args:
        d: width D.
        channels: of a rotor, see `DrivenRotor`.
        reflections: per token and rotor, see `DrivenRotor`.
        hidden_dropout: see `MixingLayer`.
        exact: see `MixingLayer`.
    """

    def __init__(
        self,
        d: int,
        channels: int = 8,
        reflections: int = 4,
        *,
        hidden_dropout: float = 0.0,
        exact: bool = False,
    ) -> None:
        super().__init__(d, hidden_dropout=hidden_dropout, exact=exact)
        self.rotor = DrivenRotor(d, channels, reflections)

    def step(self, context: TokenContext) -> StepGroup:
        """Return the layer as a step over two streams `(B, L, D)`.

        Args:
            context: of the L tokens of the streams.
        """

        def turn_rotor(x_BLD: Tensor) -> Tensor:
            turned: Tensor = self.rotor(x_BLD, context)
            return turned

        return self.step_with(turn_rotor, self.rotor)
