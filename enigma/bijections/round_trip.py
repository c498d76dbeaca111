"""How exactly the inverse undoes the machine, measured on its real weights."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass

import torch
from torch import nn

from enigma.bijections.exact import round_to_grid
from enigma.bijections.machine import Enigma

__all__ = ["RoundTripReport", "core_round_trip_error"]


@dataclass(frozen=True)
class RoundTripReport:
    """Relative errors of x -> y -> x.

    Attributes:
        length: tokens per sequence.
        float32: max |x' - x| / max |x| in float32.
        float64: the same in float64.
        float32_reversed: max |y' - y| / max |y| of y -> x -> y in float32.
        float64_reversed: the same in float64.
    """

    length: int
    float32: float
    float64: float
    float32_reversed: float
    float64_reversed: float

    def to_dict(self) -> dict[str, float | int]:
        """Return the figures by name, for a JSON file."""
        return asdict(self)


def core_round_trip_error(
    model: nn.Module, length: int = 256, *, batch_size: int = 2, seed: int = 0
) -> RoundTripReport:
    """Measure the round trip of a core on standard normal streams.

    The model is copied and not changed. Each direction has its own input, as the errors may differ
    where a map contracts.

    Args:
        model: an `Enigma`, or a model that holds one as `core`, such as `EnigmaLM`.
        length: tokens per sequence, L.
        batch_size: sequences.
        seed: of the streams.

    Returns:
        The relative errors of both directions in both dtypes.

    Raises:
        TypeError: for a model without a core.

    Examples:
        >>> report = core_round_trip_error(Enigma(d=8, num_rotors=1, positions=4), length=5)
        >>> report.float64 < 1e-12
        True
    """
    core = getattr(model, "core", model)
    if not isinstance(core, Enigma):
        raise TypeError(f"expected an Enigma or an EnigmaLM, got {type(model).__name__}")
    generator = torch.Generator().manual_seed(seed)
    x_BLD = torch.randn(batch_size, length, core.d, generator=generator, dtype=torch.float64)
    device = next(core.parameters()).device
    errors = {}
    for dtype in (torch.float32, torch.float64):
        machine = copy.deepcopy(core).to(dtype).eval()
        x = x_BLD.to(device, dtype)
        if machine.exact:
            x = round_to_grid(x)  # the machine's own numbers; off the grid it would round them
        with torch.no_grad():
            there_and_back = machine.inverse(machine(x))
            back_and_there = machine(machine.inverse(x))
        scale = x.abs().max()
        errors[dtype] = tuple(
            float((again - x).abs().max() / scale) for again in (there_and_back, back_and_there)
        )
    return RoundTripReport(
        length,
        float32=errors[torch.float32][0],
        float64=errors[torch.float64][0],
        float32_reversed=errors[torch.float32][1],
        float64_reversed=errors[torch.float64][1],
    )
