"""The machine with one of its parts taken away, for ablations."""

from typing import Any

from torch import nn

from enigma.bijections.machine import Enigma, Pass
from enigma.invertible_conv1x1 import InvertibleConv1x1Stack

PLUGBOARD, ROTORS, REFLECTOR, WAY_BACK = PARTS = ("plugboard", "rotors", "reflector", "way back")


def take_away(core: Enigma, part: str) -> None:
    """Take one of `PARTS` out of a machine, in place, with its parameters.

    Without its way back a machine ends behind the reflector, with the plugboard transposed.
    """
    nothing = InvertibleConv1x1Stack(core.d, 0)
    if part == WAY_BACK:
        _end_behind_the_reflector(core)
    elif part == ROTORS:
        core.rotors = nothing
        core.more_rotors = nn.ModuleList(nothing for _ in core.more_rotors)
    else:
        setattr(core, part, nothing)


def _end_behind_the_reflector(core: Any) -> None:
    *way_out, plugboard = core.passes()
    middle = next(place for place, each in enumerate(way_out) if each.part is core.reflector)
    passes: list[Pass] = [*way_out[: middle + 1], plugboard]
    core.passes = passes.copy
    core.return_blocks = nn.ModuleList()
    core.more_rotors = core.more_rotors[: len(core.blocks) - 1]
