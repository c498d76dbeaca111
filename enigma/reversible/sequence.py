"""Reversible training for any pairs of networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast, get_args

import torch
from torch import Tensor, nn

from enigma.reversible.backward import MemoryMode, run_streams, undo_steps
from enigma.reversible.steps import CouplingStep

__all__ = ["ReversibleSequence"]


class ReversibleSequence(nn.Module):
    """Pairs of networks (f, g) over two streams: y1 = x1 + f(x2), y2 = x2 + g(y1), and so on.

    The memory of training does not grow with the number of pairs. A network may serve in several
    pairs, also under `DistributedDataParallel`: its gradient is computed once.

    A network must be a function of its one input, its parameters and its settings. Its autocast and
    what it draws from torch's default generators are repeated in the backward pass. What it draws
    from a generator of its own is not, and the gradients are then wrong; statistics that it updates
    when called, like those of a batch norm in training, are updated twice per step.

    Args:
        pairs: the networks, first pair first. f maps the second stream to the shape of the first,
            g the first to the shape of the second.
        memory: "reversible", or for comparison "plain" or "checkpoint", see `run_streams`.

    Raises:
        ValueError: for no pair, more or fewer networks than two in one, or an unknown mode; when
            called, for a network that changes the shape of its stream.

    Examples:
        >>> pairs = [(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3)]
        >>> model = ReversibleSequence(pairs).double()
        >>> x1, x2 = torch.ones(2, 5, 4, dtype=torch.float64)
        >>> y1, y2 = model(x1, x2)
        >>> torch.allclose(model.inverse(y1, y2)[0], x1, rtol=0, atol=1e-12)
        True
    """

    def __init__(
        self,
        pairs: Iterable[tuple[nn.Module, nn.Module]],
        *,
        memory: MemoryMode = "reversible",
    ) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)
        if not self.pairs:
            raise ValueError("expected at least one pair of networks, got none")
        for pair in self.pairs:
            if len(cast("nn.ModuleList", pair)) != 2:
                raise ValueError(f"expected pairs (f, g) of networks, got {pair}")
        if memory not in get_args(MemoryMode):
            raise ValueError(f"memory must be one of {get_args(MemoryMode)}, got {memory!r}")
        self.memory: MemoryMode = memory

    if TYPE_CHECKING:

        def __call__(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
            """Call `forward` and the hooks."""

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two streams after the last pair."""
        memory = self.memory if torch.is_grad_enabled() else "plain"
        return cast("tuple[Tensor, Tensor]", run_streams(self._steps(), (x1, x2), memory))

    def inverse(self, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the streams that `forward` maps to `y1` and `y2`."""
        return cast("tuple[Tensor, Tensor]", undo_steps(self._steps(), (y1, y2)))

    def _steps(self) -> list[CouplingStep]:
        pairs = (cast("nn.ModuleList", pair) for pair in self.pairs)
        return [CouplingStep((f, (f,)), (g, (g,)), stream_numbers=(0, 1)) for f, g in pairs]
