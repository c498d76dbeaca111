"""Invertible 1x1 convolutions, the rotors of the machine, in PLU form.

Source: Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018),
equations 10 and 11: W = P L (U + diag(s)), log |det W| = sum log |s|.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypedDict, Unpack, cast, get_args

import torch
from torch import Tensor, nn

from enigma.bijections.base import Bijection, TokenContext, total_log_det
from enigma.bijections.constant_weights import FormsOnce
from enigma.bijections.lifting import LiftingConv1x1
from enigma.rotor import odometer, shift_channels

__all__ = [
    "DynamicInvertibleConv1x1Stack",
    "InvertibleConv1x1",
    "InvertibleConv1x1Stack",
    "RotorForm",
    "RotorOptions",
    "Start",
]

_MOST_POSITIONS = 16
_FIXED_POINT = 2.0**-62
"""The unit of the integers that hold a rotation: finer than float64 for entries above 1e-3."""
Start = Literal["identity", "permutation", "rotation"]
RotorForm = Literal["plu", "lifting"]


class RotorOptions(TypedDict, total=False):
    """The keyword arguments of `InvertibleConv1x1Stack`."""

    form: RotorForm
    start: Start
    first_seed: int
    exact: bool


class InvertibleConv1x1(FormsOnce, Bijection):
    """One invertible matrix W = P L (U + diag(s)) applied to the channels of every token.

    One `(D, D)` parameter holds all three factors: L below its diagonal, U above, and on the
    diagonal the raw log-scales, soft-clamped by tanh. So a rotor has exactly as many parameters
    as a bias-free linear layer, and weight decay pulls it to its start. The signs of s are fixed
    at +1: to change one, training would have to pass through a singular matrix.

    Args:
        num_channels: width D, at least 1.
        start: the value of W before training. "identity" is the default because noise on the
            parameters breaks the inverse of a random orthogonal start (error 310 where the
            identity stays at 4e-6) and because a permutation of token embeddings costs a
            language model 1.10 nats. "permutation" is a perfect shuffle, even channels first: each
            of log2(D) such rotors in a row splits the channels into different halves, and any two
            channels are separated once. "rotation" replaces P by a random orthogonal matrix that
            is not learned; L, U and s still start at the identity, which keeps the inverse exact.
        seed: of the rotation.

    Raises:
        ValueError: for a width below 1 or an unknown start.

    Examples:
        >>> rotor = InvertibleConv1x1(num_channels=4)
        >>> x = torch.ones(2, 3, 4)
        >>> torch.equal(rotor.inverse(rotor(x)), x)
        True
    """

    permutation: Tensor
    rotation: Tensor

    def __init__(self, num_channels: int, *, start: Start = "identity", seed: int = 0) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {num_channels}")
        if start not in get_args(Start):
            raise ValueError(f"start must be one of {get_args(Start)}, got {start!r}")
        self.num_channels = num_channels
        self.start = start
        order = torch.arange(num_channels, device="cpu")
        if start == "permutation":
            order = torch.cat((order[::2], order[1::2]))
        self.register_buffer("permutation", order)
        if start == "rotation":
            # In float64, whatever the module's dtype at construction: its log-determinant is
            # assumed to be 0.
            generator = torch.Generator().manual_seed(seed)
            gaussian_DD = torch.randn(
                num_channels, num_channels, generator=generator, dtype=torch.float64, device="cpu"
            )
            self.register_buffer("rotation", _fixed_point(torch.linalg.qr(gaussian_DD).Q))
        self.packed = nn.Parameter(torch.empty(num_channels, num_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set L = U = I and s = 1."""
        nn.init.zeros_(self.packed)

    def log_scale(self) -> Tensor:
        """Return log s, `(D,)`, between -1 and 1 nats."""
        return self._kept_log_scale().clone()

    def _kept_log_scale(self) -> Tensor:
        return self.formed_once("log_scale", self._form_log_scale, self.packed)

    def _form_log_scale(self) -> Tensor:
        return torch.tanh(self.packed.diagonal())

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the unit lower and the upper triangular factor, each `(D, D)`."""
        lower = self.packed.tril(-1) + torch.eye(
            self.num_channels, dtype=self.packed.dtype, device=self.packed.device
        )
        upper = self.packed.triu(1) + torch.diag(self.log_scale().exp())
        return lower, upper

    def weight(self) -> Tensor:
        """Return W `(D, D)`."""
        return self._form_weight(self.log_scale())

    def _form_weight(self, log_scale_D: Tensor) -> Tensor:
        return self._form_departure(log_scale_D) + self.start_matrix(self.packed)

    def start_matrix(self, like: Tensor) -> Tensor:
        """Return P `(D, D)`, what W is before training, in dtype and on device of `like`."""
        if self.start == "rotation":
            # float16 does not reach to the integers.
            wide = torch.promote_types(like.dtype, torch.float32)
            return (self.rotation.to(like.device, wide) * _FIXED_POINT).to(like.dtype)
        identity = torch.eye(self.num_channels, dtype=like.dtype, device=like.device)
        return identity.index_select(0, self.permutation.to(like.device))

    def _form_departure(self, log_scale_D: Tensor) -> Tensor:
        """Return W - P `(D, D)`.

        W x is computed as P x + (W - P) x: near the start its rounding error is a quarter of that
        of W x, whose partial sums all contain the large term.
        """
        # L = I + l and U = I + u give L U - I = l + u + l u.
        lower_less_one = self.packed.tril(-1)
        # `diag_embed` and its gradient take less than half the time of `diag`.
        upper_less_one = self.packed.triu(1) + torch.diag_embed(log_scale_D.expm1())
        sum_less_one = lower_less_one + upper_less_one
        product_less_one = torch.addmm(sum_less_one, lower_less_one, upper_less_one)
        if self.start == "identity":
            return product_less_one
        if self.start == "rotation":
            return self.start_matrix(product_less_one) @ product_less_one
        return product_less_one.index_select(0, self.permutation)

    def _form_inverse(self) -> Tensor:
        """Return the transpose of W^-1, float64: it multiplies rows from the right."""
        # MPS has no float64: there the systems are solved on the CPU.
        device = "cpu" if self.packed.device.type == "mps" else self.packed.device
        lower, upper = (factor.to(device, torch.float64) for factor in self.factors())
        half: Tensor = torch.linalg.solve_triangular(
            lower.T, self.start_matrix(lower), upper=True, left=False, unitriangular=True
        )
        inverse: Tensor = torch.linalg.solve_triangular(upper.T, half, upper=False, left=False)
        return inverse

    def _multiply_rows(self, rows: Tensor, log_scale_D: Tensor) -> Tensor:
        if self.start == "rotation":
            weight_DD = self.formed_once(
                "weight", lambda: self._form_weight(log_scale_D), self.packed
            )
            return rows @ weight_DD.to(rows.dtype).T
        permuted = rows if self.start == "identity" else rows.index_select(1, self.permutation)
        departure_DD = self.formed_once(
            "departure", lambda: self._form_departure(log_scale_D), self.packed
        )
        return torch.addmm(permuted, rows, departure_DD.to(rows.dtype).T)

    def _forward(
        self,
        x: Tensor,
        context: TokenContext | None,  # noqa: ARG002 - the same at every token
    ) -> tuple[Tensor, Tensor]:
        """Return `(W x, log |det W|)`, outside autocast.

        A rotor in bfloat16 would make the stream ten times less invertible.
        """
        with torch.autocast(x.device.type, enabled=False):
            log_scale_D = self._kept_log_scale()
            y = self._multiply_rows(x.reshape(-1, self.num_channels), log_scale_D).view(x.shape)
            log_det = self.formed_once("log_det", log_scale_D.sum, self.packed)
        return y, log_det.expand(x.shape[:-1]).clone()  # the caller's to change

    def _inverse(
        self,
        y: Tensor,
        context: TokenContext | None,  # noqa: ARG002 - the same at every token
    ) -> tuple[Tensor, Tensor]:
        """Return `(W^-1 y, -log |det W|)`.

        Two triangular systems are solved in float64 for the unit vectors, which gives W^-1; the
        residual of its product with y is mapped back once more. In float32 this is as exact as
        float64 throughout: only the rounding of the forward pass remains.
        """
        with torch.autocast(y.device.type, enabled=False):
            rows = y.reshape(-1, self.num_channels)
            inverse_DD = self.formed_once(
                f"inverse, {y.dtype}",
                lambda: self._form_inverse().to(y.device, y.dtype),
                self.packed,
            )
            x = rows @ inverse_DD
            log_scale_D = self._kept_log_scale()
            x = torch.addmm(x, rows - self._multiply_rows(x, log_scale_D), inverse_DD)
            log_det = self.formed_once("log_det", log_scale_D.sum, self.packed)
        return x.view(y.shape), -log_det.expand(y.shape[:-1])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Read files in which the rotation is floating, as it was before."""
        rotation = state_dict.get(f"{prefix}rotation")
        if rotation is not None and rotation.is_floating_point():
            state_dict[f"{prefix}rotation"] = _fixed_point(rotation)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _fixed_point(matrix: Tensor) -> Tensor:
    """Return a matrix of numbers from -1 to 1 as integers, which no cast of a module touches."""
    return (matrix.double() / _FIXED_POINT).round().long()


class InvertibleConv1x1Stack(Bijection):
    """Several invertible 1x1 convolutions in a row, the same at every token.

    Args:
        num_channels: width D.
        num_layers: number of convolutions, 0 for the identity.
        form: "plu" is `InvertibleConv1x1`, "lifting" is `enigma.bijections.lifting.LiftingConv1x1`.
        start: the PLU form before training, see `InvertibleConv1x1`.
        first_seed: seed of the first convolution's rotation; each further one adds 1.
        exact: round the lifting form to the grid of exact mode; its inverse is then bit-exact.

    Raises:
        ValueError: for a negative number of layers, an unknown form, or an exact PLU form.
    """

    positions: int = 1

    def __init__(
        self,
        num_channels: int,
        num_layers: int,
        *,
        form: RotorForm = "plu",
        start: Start = "identity",
        first_seed: int = 0,
        exact: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 0:
            raise ValueError(f"num_layers must not be negative, got {num_layers}")
        if form not in get_args(RotorForm):
            raise ValueError(f"form must be one of {get_args(RotorForm)}, got {form!r}")
        if form == "lifting" and start != "identity":
            raise ValueError(f"the lifting form starts at the identity, got start={start!r}")
        if form == "plu" and exact:
            raise ValueError(
                "expected form='lifting' with exact=True, got 'plu', whose inverse solves a system"
            )
        self.num_channels = num_channels
        self.layers = nn.ModuleList(
            LiftingConv1x1(num_channels, exact=exact)
            if form == "lifting"
            else InvertibleConv1x1(num_channels, start=start, seed=seed)
            for seed in range(first_seed, first_seed + num_layers)
        )

    def rotors(self) -> list[InvertibleConv1x1 | LiftingConv1x1]:
        """Return the convolutions in the order in which they are applied."""
        return [cast("InvertibleConv1x1 | LiftingConv1x1", layer) for layer in self.layers]

    def _forward(self, x: Tensor, context: TokenContext | None) -> tuple[Tensor, Tensor]:
        """Apply the convolutions first to last."""
        return self._turn(x, context, inverse=False)

    def _inverse(self, y: Tensor, context: TokenContext | None) -> tuple[Tensor, Tensor]:
        """Undo the convolutions last to first."""
        return self._turn(y, context, inverse=True)

    def _turn(
        self, x: Tensor, context: TokenContext | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        shift, log_dets = _Shift(self.wheels(x, context), self.positions), []
        order = list(enumerate(self.rotors()))
        for k, rotor in reversed(order) if inverse else order:
            x, log_det = rotor(shift.to_rotor(x, k), inverse=inverse, log_det=True)
            log_dets.append(log_det)
        return shift.home(x), total_log_det(x, log_dets)

    def wheels(self, x: Tensor, context: TokenContext | None) -> list[Tensor]:  # noqa: ARG002
        """Return each rotor's position at each token; an empty list for static rotors."""
        return []


class DynamicInvertibleConv1x1Stack(InvertibleConv1x1Stack):
    """Rotors that step with the token index, like an odometer.

    At position p a rotor is its one matrix conjugated by a cyclic shift S of the channels by
    D / P: S^-p W S^p. That is `positions ** num_layers` distinct maps with no weights beyond
    those of the static stack and the same log-determinant everywhere. Neighbouring shifts
    merge, so R rotors cost R matrix products and R + 1 shifts, without a loop over tokens.

    Args:
        num_channels: width D, divisible by `positions`.
        num_layers: number of rotors, R.
        positions: positions of a rotor, P; None takes the largest up to 16 that fits.
        **options: form and start of the rotors, as for `InvertibleConv1x1Stack`.

    Raises:
        ValueError: if `positions` is below 1 or does not divide `num_channels`.

    Examples:
        >>> rotors = DynamicInvertibleConv1x1Stack(num_channels=8, num_layers=2, positions=4)
        >>> rotors(torch.ones(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(
        self,
        num_channels: int,
        num_layers: int,
        positions: int | None = None,
        **options: Unpack[RotorOptions],
    ) -> None:
        positions = fitting_positions(num_channels, positions)
        super().__init__(num_channels, num_layers, **options)
        self.positions = positions

    def wheels(self, x: Tensor, context: TokenContext | None) -> list[Tensor]:
        """Return the R rotor positions, int64, each of the shape of the token index."""
        if self.positions == 1:
            return []
        index = (context or TokenContext.of(x)).index
        return odometer(index, len(self.layers), self.positions)


def fitting_positions(num_channels: int, positions: int | None, *, name: str = "positions") -> int:
    """Return the positions of a rotor, the largest up to 16 that divide the width by default.

    Args:
        num_channels: width D.
        positions: positions that are asked for, P.
        name: what the caller's user calls them.

    Raises:
        ValueError: if positions that are given are below 1 or do not divide the width; or for a
            width below 1.
    """
    if num_channels < 1:
        raise ValueError(f"num_channels must be at least 1, got {num_channels}")
    fitting = [p for p in range(min(num_channels, _MOST_POSITIONS), 0, -1) if num_channels % p == 0]
    if positions is None:
        return fitting[0]
    if positions < 1 or num_channels % positions:
        raise ValueError(
            f"{name} must divide the width {num_channels}, got {positions}; to fix this: "
            f"take {fitting[0]}, or another of {sorted(fitting)}"
        )
    return positions


class _Shift:
    """Tracks how far the channels are shifted, to merge neighbouring shifts."""

    def __init__(self, wheels: Iterable[Tensor], positions: int) -> None:
        self._wheels = list(wheels)
        self._positions = positions
        self._turned: Tensor | None = None

    def to_rotor(self, x: Tensor, k: int) -> Tensor:
        if not self._wheels:
            return x
        wanted = self._wheels[k]
        step = wanted if self._turned is None else wanted - self._turned
        self._turned = wanted
        return shift_channels(x, step, self._positions)

    def home(self, x: Tensor) -> Tensor:
        return x if self._turned is None else shift_channels(x, -self._turned, self._positions)
