"""One of every bijection, for tests that hold for all of them."""

from enigma.bijections.lifting import LiftingConv1x1
from enigma.bijections.machine import Enigma
from enigma.couplings.settings import COUPLINGS
from enigma.invertible_conv1x1 import (
    DynamicInvertibleConv1x1Stack,
    InvertibleConv1x1,
    InvertibleConv1x1Stack,
)
from enigma.plugboard import Plugboard
from enigma.reflector import Reflector
from enigma.rev_block import RevBlock
from enigma.simple_permutation import SimplePermutation

D = 8
BIJECTIONS = {
    "conv1x1": lambda: InvertibleConv1x1(D),
    "conv1x1 from a permutation": lambda: InvertibleConv1x1(D, start="permutation"),
    "conv1x1 from a rotation": lambda: InvertibleConv1x1(D, start="rotation"),
    "static stack": lambda: InvertibleConv1x1Stack(D, num_layers=3),
    "dynamic stack": lambda: DynamicInvertibleConv1x1Stack(D, num_layers=3, positions=4),
    "lifting": lambda: LiftingConv1x1(D),
    "lifting, odd": lambda: LiftingConv1x1(D - 1),
    "lifting stack": lambda: DynamicInvertibleConv1x1Stack(D, 3, positions=4, form="lifting"),
    "permutation": lambda: SimplePermutation(D),
    "plugboard": lambda: Plugboard(D),
    "learnable plugboard": lambda: Plugboard(D, learnable=True),
    "reflector": lambda: Reflector(D),
    "block reflector": lambda: Reflector(D, rank=3),
    **{f"{kind} block": lambda kind=kind: RevBlock(D, kind) for kind in COUPLINGS},
    "block, odd": lambda: RevBlock(D - 1, "spline"),
    "block with a convolution": lambda: RevBlock(D, kernel_size=3),
    **{
        f"machine, {path}": lambda path=path: Enigma(D, 2, 2, 4, return_path=path)
        for path in ("reversed", "untied", "inverse")
    },
    "machine of splines": lambda: Enigma(
        D, 2, 1, 4, coupling="spline", return_path="untied", rotors_between_blocks=True
    ),
    **{
        f"machine of splines, own rotors, {path}": lambda path=path: Enigma(
            D,
            2,
            1,
            4,
            coupling="spline",
            return_path=path,
            rotors_between_blocks=True,
            own_rotors=True,
            bias=True,
        )
        for path in ("reversed", "untied", "inverse")
    },
}
