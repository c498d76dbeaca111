"""The machine: a reversible core whose signal goes out, is reflected, and returns.

x -> plugboard -> rotors -> blocks 1 ... n -> reflector -> blocks n ... 1 -> plugboard^T -> y
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Unpack, cast, get_args

from torch import Tensor, nn

from enigma.bijections.base import Bijection, TokenContext, total_log_det
from enigma.bijections.exact import round_to_grid
from enigma.bijections.step_groups import StepGroup
from enigma.couplings.settings import CouplingKind, CouplingOptions, CouplingSettings
from enigma.invertible_conv1x1 import (
    DynamicInvertibleConv1x1Stack,
    InvertibleConv1x1Stack,
    RotorForm,
    RotorOptions,
    Start,
    fitting_positions,
)
from enigma.plugboard import Plugboard
from enigma.reflector import Reflector
from enigma.rev_block import RevBlock
from enigma.reversible import BijectionStep, Step

__all__ = ["Enigma", "Pass", "ReturnPath"]

_Map = Callable[[Tensor, TokenContext], tuple[Tensor, Tensor]]
ReturnPath = Literal["reversed", "untied", "inverse"]


@dataclass(frozen=True)
class Pass:
    """One passage of the signal through a part of the machine, in either direction.

    Attributes:
        part: the bijection.
        inverted: the signal passes through its inverse.
        turns: how much further the odometer is turned.
        stores_input: store the signal before it in reversible training. For rotors that the signal
            passes once: solving their systems costs more than a stream is worth.
    """

    part: Bijection
    inverted: bool = False
    turns: int = 0
    stores_input: bool = False

    def forward_with_log_det(self, x: Tensor, context: TokenContext) -> tuple[Tensor, Tensor]:
        """Pass the signal on; see `Bijection` for shapes."""
        return self._map(x, context, inverted=self.inverted)

    def inverse_with_log_det(self, y: Tensor, context: TokenContext) -> tuple[Tensor, Tensor]:
        """Pass the signal back; see `Bijection` for shapes."""
        return self._map(y, context, inverted=not self.inverted)

    def _map(self, x: Tensor, context: TokenContext, *, inverted: bool) -> tuple[Tensor, Tensor]:
        return self.part(x, context.advanced(self.turns), inverse=inverted, log_det=True)

    def step(self, context: TokenContext, stream: int) -> Step | StepGroup:
        """Return the pass as a step over one of several streams, see `enigma.reversible`."""
        part, context = self.part, context.advanced(self.turns)
        if isinstance(part, RevBlock) and part.coupling == "additive" and not self.inverted:
            return part.step(context, stream)
        return BijectionStep(
            partial(part, context=context, inverse=self.inverted),
            partial(part, context=context, inverse=not self.inverted),
            part,
            stream=stream,
            stores_input=self.stores_input,
        )


class Enigma(Bijection):
    """The reversible core: a bijection of `(..., L, D)` that depends on the token index.

    Args:
        d: width D, at least 2.
        num_rev_blocks: reversible blocks on the way out; the way back passes as many.
        num_rotors: rotors, 0 for none.
        positions: positions of a rotor; must divide `d`. None takes the largest up to 16 that does.
        dynamic: step the rotors with the token index; False makes them static.
        coupling: the kind of coupling in the blocks, or all its settings as one object.
        return_path: "reversed" passes the same blocks in the opposite order (as published),
            "untied" has separate blocks for the way back, "inverse" undoes the way out: the
            machine is then its own inverse like the historical one, f(f(x)) = x.
        rotors_between_blocks: pass the rotors before every block, turned one step further each
            time, instead of once before the first block. A flow needs the mixing.
        own_rotors: with `rotors_between_blocks`, put separate rotors in front of every block
            instead of one shared stack.
        rotor_form: "plu" or "lifting", see `InvertibleConv1x1Stack`.
        start: the rotors before training, see `InvertibleConv1x1`.
        learnable_plugboard: learn which channels are swapped.
        seed: of the plugboard.
        **options: fields of `CouplingSettings`, beside a kind. `exact=True` concerns the whole
            machine: it computes on the grid of exact mode, so that the inverse is bit-exact. This
            needs additive blocks and lifting rotors; the reflector joins through lifting. The
            input is rounded to the grid first.

    Raises:
        ValueError: for a width, number or choice out of range; the message names it. Also at run
            time, if an exact stream reaches the limit of its grid.

    Examples:
        >>> import torch
        >>> core = Enigma(d=8, num_rev_blocks=2, num_rotors=2, positions=4).double()
        >>> x = torch.randn(1, 5, 8, dtype=torch.float64)
        >>> torch.allclose(core.inverse(core(x)), x, rtol=0, atol=1e-12)
        True
    """

    def __init__(
        self,
        d: int,
        num_rev_blocks: int = 4,
        num_rotors: int = 4,
        positions: int | None = None,
        *,
        dynamic: bool = True,
        coupling: CouplingKind | CouplingSettings = "additive",
        return_path: ReturnPath = "reversed",
        rotors_between_blocks: bool = False,
        own_rotors: bool = False,
        rotor_form: RotorForm = "plu",
        start: Start = "identity",
        learnable_plugboard: bool = False,
        seed: int = 0,
        **options: Unpack[CouplingOptions],
    ) -> None:
        super().__init__()
        if dynamic:
            positions = fitting_positions(d, positions)
        own = dict(locals())
        for name in ("self", "__class__", "coupling", "options"):
            del own[name]
        settings = CouplingSettings.of(coupling, **options)
        self.coupling_settings = settings
        # Keyword arguments that make the same machine, for a JSON file.
        self.settings: dict[str, Any] = {**own, **settings.to_arguments()}
        if return_path not in get_args(ReturnPath):
            raise ValueError(
                f"return_path must be one of {get_args(ReturnPath)}, got {return_path!r}"
            )
        if num_rev_blocks < 0:
            raise ValueError(f"num_rev_blocks must not be negative, got {num_rev_blocks}")
        if own_rotors and not rotors_between_blocks:
            raise ValueError("own_rotors needs rotors_between_blocks=True, got False")
        self.d = self.num_channels = d
        self.return_path = return_path
        self.rotors_between_blocks = rotors_between_blocks
        self.plugboard = Plugboard(d, learnable=learnable_plugboard, seed=seed)
        self.exact = settings.exact

        make_rotors = partial(
            _rotors, d, num_rotors, positions if dynamic else None,
            form=rotor_form, start=start, exact=self.exact,
        )  # fmt: skip
        self.rotors = make_rotors(first_seed=0)
        num_passages = num_rev_blocks * (1 if return_path == "inverse" else 2)
        self.more_rotors = nn.ModuleList(
            make_rotors(first_seed=stack * num_rotors)
            for stack in range(1, num_passages if own_rotors else 1)
        )
        self.blocks = nn.ModuleList(RevBlock(d, settings) for _ in range(num_rev_blocks))
        self.reflector = Reflector(d, exact=self.exact)
        num_return_blocks = num_rev_blocks if return_path == "untied" else 0
        self.return_blocks = nn.ModuleList(RevBlock(d, settings) for _ in range(num_return_blocks))

    def _forward(self, x: Tensor, context: TokenContext | None) -> tuple[Tensor, Tensor]:
        """Encipher."""
        return self._run([each.forward_with_log_det for each in self.passes()], x, context)

    def _inverse(self, y: Tensor, context: TokenContext | None) -> tuple[Tensor, Tensor]:
        """Decipher."""
        back = [each.inverse_with_log_det for each in reversed(self.passes())]
        return self._run(back, y, context)

    def steps(self, context: TokenContext, stream: int) -> list[Step | StepGroup]:
        """Return the machine as steps over one of several streams, see `enigma.reversible`.

        In exact mode the stream must lie on the grid already.

        Args:
            context: which tokens the stream holds.
            stream: the number of the stream.
        """
        return [each.step(context, stream) for each in self.passes()]

    def _run(
        self, maps: Sequence[_Map], x: Tensor, context: TokenContext | None
    ) -> tuple[Tensor, Tensor]:
        context = context or TokenContext.of(x)
        if self.exact:
            x = round_to_grid(x)
        log_dets = []
        for each in maps:
            x, log_det = each(x, context)
            log_dets.append(log_det)
        return x, total_log_det(x, log_dets)

    def passes(self) -> list[Pass]:
        """Return the path of the signal, which every way of running the machine follows."""
        plugged = Pass(self.plugboard)
        unplugged = Pass(self.plugboard, inverted=True)
        way_out = self._through(list(self.blocks), first_turn=0)
        middle = Pass(self.reflector)
        if self.return_path == "inverse":
            undone = [replace(each, inverted=True) for each in reversed(way_out)]
            return [plugged, *way_out, middle, *undone, unplugged]
        untied = self.return_path == "untied"
        blocks = list(self.return_blocks if untied else self.blocks)[::-1]
        way_back = self._through(blocks, first_turn=len(blocks), rotors_first=False)
        return [plugged, *way_out, middle, *way_back, unplugged]

    def _through(
        self, blocks: list[nn.Module], first_turn: int, *, rotors_first: bool = True
    ) -> list[Pass]:
        passes = []
        if rotors_first and not self.rotors_between_blocks:
            passes.append(Pass(self.rotors, stores_input=True))
        for turn, block in enumerate(blocks, start=first_turn):
            if self.rotors_between_blocks:
                passes.append(Pass(self._rotors_before(turn), turns=turn))
            passes.append(Pass(cast("Bijection", block)))
        return passes

    def _rotors_before(self, turn: int) -> Bijection:
        rotors = self.more_rotors[turn - 1] if turn and self.more_rotors else self.rotors
        return cast("Bijection", rotors)


def _rotors(
    d: int, num_rotors: int, positions: int | None, **options: Unpack[RotorOptions]
) -> InvertibleConv1x1Stack:
    """Return rotors that step, or static ones without `positions`."""
    if positions is None:
        return InvertibleConv1x1Stack(d, num_rotors, **options)
    return DynamicInvertibleConv1x1Stack(d, num_rotors, positions, **options)
