"""Modules that are run step by step, yet called: so that their hooks fire.

Reversible training runs a model as a list of steps. Hooks, and whatever gathers or loads weights by
hooks (FSDP, offloading), see only calls of modules. So a module is called around its steps, with a
function `run` that runs them, and returns what that returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from enigma.reversible import Step, Streams

__all__ = ["StepGroup", "each_step", "put", "take"]

Receive: TypeAlias = Callable[["Streams"], "Streams"]


class StepGroup:
    """Consecutive steps over the same streams, which belong to one module.

    Args:
        steps: in the order of the signal.
        stream_numbers: their streams.
        module: called as `module(*streams, run=run)`, it returns what `run(*streams)` returns; a
            lone stream without its tuple, as bijections do.
    """

    def __init__(
        self,
        steps: Sequence[Step | StepGroup],
        stream_numbers: tuple[int, ...],
        module: Callable[..., Any],
    ) -> None:
        self.steps = steps
        self.stream_numbers = stream_numbers
        self.module = module


def each_step(
    steps: Sequence[Step | StepGroup],
    streams: Streams,
    act: Callable[[Step, Streams], Streams],
    *,
    backwards: bool = False,
    hand_over: Callable[[Streams], Receive] = lambda _: lambda streams: streams,
) -> Streams:
    """Let every step act on the streams, those of a group inside a call of its module.

    Args:
        steps: in the order of the signal.
        streams: all of them.
        act: returns all streams after a step.
        backwards: take the steps in the opposite order.
        hand_over: given all streams before the hooks of a module see theirs, returns a function
            that is given all streams after them and returns those to go on with.
    """
    for step in reversed(steps) if backwards else steps:
        if not isinstance(step, StepGroup):
            streams = act(step, streams)
            continue

        receive = hand_over(streams)

        def run(*x: Tensor, group: StepGroup = step) -> Streams:
            nonlocal streams, receive  # of all streams, as `act` may replace the others too
            streams = receive(put(streams, group.stream_numbers, x))
            streams = each_step(group.steps, streams, act, backwards=backwards, hand_over=hand_over)
            receive = hand_over(streams)
            return take(streams, group.stream_numbers)

        y = step.module(*take(streams, step.stream_numbers), run=run)
        y = y if isinstance(y, tuple) else (y,)
        streams = receive(put(streams, step.stream_numbers, y))
    return streams


def take(streams: Streams, numbers: tuple[int, ...]) -> Streams:
    """Return the streams of these numbers."""
    return tuple(streams[number] for number in numbers)


def put(streams: Streams, numbers: tuple[int, ...], values: Streams) -> Streams:
    """Return the streams with those of these numbers replaced."""
    moved = dict(zip(numbers, values, strict=True))
    return tuple(moved.get(number, old) for number, old in enumerate(streams))
