"""How exactly the inverse undoes the machine, measured on its real weights.

Legend: B texts, L tokens, D channels.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from enigma.bijections.exact import round_to_grid
from enigma.bijections.machine import Enigma

__all__ = ["RoundTripReport", "core_round_trip_error"]


@dataclass(frozen=True)
class RoundTripReport:
    """Relative errors of x -> y -> x: |x' - x| / |x| (2-norms) of the token where it is largest.

    A token is compared with itself, or one with very large numbers would hide the others. The parts
    of the machine read it divided by its RMS, so small channels need not be more exact than that.

    Attributes:
        length: tokens per sequence.
        float32: of x -> y -> x in float32.
        float64: the same in float64.
        float32_reversed: of y -> x -> y in float32.
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
    model: nn.Module,
    length: int = 256,
    *,
    ids: Tensor | None = None,
    batch_size: int = 2,
    seed: int = 0,
) -> RoundTripReport:
    """Measure the round trip of a core.

    With ids, x is what reaches the core when the model reads them, and y what leaves it. Trained
    streams can be large. Standard normal streams are not, so without ids the error is measured on
    inputs the model never sees.

    The core is copied and not changed.

    Args:
        model: an `Enigma`, or a model that holds one as `core`, such as `EnigmaLM`.
        length: tokens per sequence, L.
        ids: int64 `(B, L)`, real texts for an `EnigmaLM`; they replace `length`, `batch_size` and
            `seed`.
        batch_size: sequences of the standard normal streams, B.
        seed: of the standard normal streams, which both directions take.

    Returns:
        The relative errors of both directions in both dtypes.

    Raises:
        TypeError: for a model without a core, or ids without a model that reads them.

    Examples:
        >>> report = core_round_trip_error(Enigma(d=8, num_rotors=1, positions=4), length=5)
        >>> report.float64 < 1e-12
        True
    """
    core = getattr(model, "core", model)
    if not isinstance(core, Enigma):
        raise TypeError(f"expected an Enigma or an EnigmaLM, got {type(model).__name__}")
    machine = copy.deepcopy(core).double().eval()
    with torch.no_grad():
        if ids is not None:
            x_BLD = _streams_of_text(model, core, ids).double()
            y_BLD = machine(x_BLD)
        else:
            generator = torch.Generator().manual_seed(seed)
            shape = (batch_size, length, core.d)
            x_BLD = torch.randn(shape, generator=generator, dtype=torch.float64)
            x_BLD = y_BLD = x_BLD.to(next(core.parameters()).device)
        float64 = _errors(machine, x_BLD, y_BLD)
        float32 = _errors(machine.float(), x_BLD.float(), y_BLD.float())
    return RoundTripReport(
        x_BLD.shape[-2],
        float32=float32[0],
        float64=float64[0],
        float32_reversed=float32[1],
        float64_reversed=float64[1],
    )


def _streams_of_text(model: nn.Module, core: Enigma, ids: Tensor) -> Tensor:
    """Return what reaches the core in evaluation mode, without the cost of the head."""
    if model is core:
        raise TypeError("expected an EnigmaLM, which reads ids, got an Enigma")
    entering: list[Tensor] = []
    trains = [(module, module.training) for module in model.modules()]  # a part may be frozen
    model.eval()
    try:
        with core.register_forward_pre_hook(lambda _, streams: entering.append(streams[0])):
            model(ids.to(next(core.parameters()).device), head=False)
    finally:
        for module, training in trains:
            module.training = training
    if not entering:
        raise TypeError("expected a model that calls its core, got one that does not")
    return entering[0]


def _errors(core: Enigma, x: Tensor, y: Tensor) -> tuple[float, float]:
    if core.exact:  # the machine's own numbers; off the grid it would round them
        x, y = round_to_grid(x), round_to_grid(y)
    return _error(core.inverse(core(x)), x), _error(core(core.inverse(y)), y)


def _error(again: Tensor, x: Tensor) -> float:
    tiny = torch.finfo(x.dtype).tiny
    return float(((again - x).norm(dim=-1) / x.norm(dim=-1).clamp_min(tiny)).max())
