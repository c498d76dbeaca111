"""Training a reversible stack without keeping its activations.

The model is a sequence of steps over two streams. A step that can be undone need not store its
input for the backward pass: the input is computed from the output. Every step is an autograd
function of its own, and a tape hands what one step has reconstructed to the step before it. Only
the end of the sequence stores the streams, and a step that is expensive to undo stores those
before it. So memory does not grow with depth.

Source: Gomez et al., "The Reversible Residual Network: Backpropagation Without Storing
Activations" (2017), algorithm 1.

What makes the gradients exact and not only close:

* those of parameters are computed by `torch.autograd.grad` and returned, never accumulated by a
  nested `backward`: DDP sees each of them once, even if a parameter serves in two steps;
* a recomputation sees the random numbers and the autocast of the first pass;
* the vector-Jacobian product runs outside autocast, as in ordinary autograd;
* a branch reads a view of its stream, so that the contributions to a gradient are summed in the
  same order in every mode. With the streams on the grid of exact mode, where reconstruction is
  exact, the gradients then equal those of ordinary autograd bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from enigma.bijections.step_groups import StepGroup, call_around, each_step, put, take
from enigma.couplings.transforms import Shift

__all__ = [
    "NON_REENTRANT",
    "BijectionStep",
    "Checkpoint",
    "CouplingStep",
    "MemoryMode",
    "Step",
    "Streams",
    "run_steps",
    "undo_steps",
]

MemoryMode = Literal["plain", "checkpoint", "reversible"]
"""What the backward pass finds: all activations, one input per step, or the stored streams only."""

Streams: TypeAlias = tuple[Tensor, ...]
Branch = Callable[[Tensor], Tensor]
Call = Callable[[int, Branch, Tensor], Tensor]
Checkpoint = Callable[..., Any]
NON_REENTRANT: Checkpoint = partial(checkpoint, use_reentrant=False)


class Step(ABC):
    """One invertible step over some of the streams.

    Attributes:
        stream_numbers: the streams that it reads and replaces.
        stores_input: store the streams before it in reversible training too. For a step that is
            expensive to undo and occurs once, whatever the depth.
    """

    stream_numbers: tuple[int, ...]
    stores_input: bool = False

    @property
    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """Its trainable parameters, each once; only reversible training needs them."""

    @abstractmethod
    def run(self, x: Streams, call: Call) -> Streams:
        """Return the outputs; every branch is computed by `call(number, branch, input)`."""

    @abstractmethod
    def undo(self, y: Streams) -> Streams:
        """Return the inputs that `run` maps to `y`."""

    @abstractmethod
    def backtrack(self, y: Streams, grad_y: Streams, call: Call) -> tuple[Streams, list[Any]]:
        """Return the inputs, and the gradients of the inputs and of `parameters`.

        Args:
            y: the outputs.
            grad_y: their gradients.
            call: computes a branch as the first pass did.
        """


class CouplingStep(Step):
    """y1 = x1 + f(x2), y2 = x2 + g(y1): two streams, or the two halves of one.

    Args:
        f: the first branch and the modules that own its parameters.
        g: the second branch, likewise.
        stream_numbers: two streams, or one that is split.
        widths: of the halves of a single stream.
        exact: add on the grid of exact mode.
        module: whose step it is, see `enigma.bijections.step_groups.call_around`.
    """

    def __init__(
        self,
        f: tuple[Branch, Sequence[nn.Module]],
        g: tuple[Branch, Sequence[nn.Module]],
        stream_numbers: tuple[int, ...],
        *,
        widths: list[int] | None = None,
        exact: bool = False,
        module: Callable[..., Any] | None = None,
    ) -> None:
        self.stream_numbers = stream_numbers
        self._module = module
        self._f, self._f_modules = f
        self._g, self._g_modules = g
        self._widths = widths
        self._shift = Shift(exact)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Those of the first branch, then those of the second."""
        return [*self._f_parameters, *self._g_parameters]

    @cached_property
    def _f_parameters(self) -> list[nn.Parameter]:
        return _trainable(self._f_modules)

    @cached_property
    def _g_parameters(self) -> list[nn.Parameter]:
        return _trainable(self._g_modules)

    def run(self, x: Streams, call: Call) -> Streams:
        """Move the first, then the second; see the base class."""
        return call_around(self._module, partial(self._move, call=call), x)

    def _move(self, *x: Tensor, call: Call) -> Streams:
        x1, x2 = self._parts(x)
        y1, _ = self._shift.forward(x1, call(0, self._f, _view(x2)).to(x1.dtype))
        y2, _ = self._shift.forward(x2, call(1, self._g, _view(y1)).to(x2.dtype))
        return self._whole(y1, y2)

    def undo(self, y: Streams) -> Streams:
        """Move the second back, then the first; see the base class."""
        return call_around(self._module, self._move_back, y)

    def _move_back(self, *y: Tensor) -> Streams:
        y1, y2 = self._parts(y)
        x2, _ = self._shift.inverse(y2, self._g(y1).to(y2.dtype))
        x1, _ = self._shift.inverse(y1, self._f(x2).to(y1.dtype))
        return self._whole(x1, x2)

    def backtrack(self, y: Streams, grad_y: Streams, call: Call) -> tuple[Streams, list[Any]]:
        """Undo, computing each branch once for the value and the gradient; see the base class."""
        y1, y2 = self._parts(y)
        grad_y1, grad_y2 = self._parts(grad_y)
        change, from_g, of_g = _branch_gradients(
            partial(call, 1, self._g), y1, grad_y2, self._g_parameters
        )
        x2, _ = self._shift.inverse(y2, change)
        grad_y1 = grad_y1 + from_g
        del change, from_g  # the next branch may decide how much memory training takes
        change, from_f, of_f = _branch_gradients(
            partial(call, 0, self._f), x2, grad_y1, self._f_parameters
        )
        x1, _ = self._shift.inverse(y1, change)
        grads = self._whole(grad_y1, grad_y2 + from_f)
        return self._whole(x1, x2), [*grads, *of_f, *of_g]

    def _parts(self, x: Streams) -> Streams:
        return x if self._widths is None else torch.split(x[0], self._widths, dim=-1)

    def _whole(self, x1: Tensor, x2: Tensor) -> Streams:
        return (x1, x2) if self._widths is None else (torch.cat((x1, x2), dim=-1),)


class BijectionStep(Step):
    """Any bijection of one stream.

    Args:
        forward: maps the stream.
        inverse: maps it back.
        module: owns the parameters of both.
        stream: the number of the stream.
        stores_input: see `Step`.
    """

    def __init__(
        self,
        forward: Branch,
        inverse: Branch,
        module: nn.Module,
        *,
        stream: int = 0,
        stores_input: bool = False,
    ) -> None:
        self.stream_numbers = (stream,)
        self.stores_input = stores_input
        self._forward = forward
        self._inverse = inverse
        self._module = module

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Those of the bijection."""
        return _trainable([self._module])

    def run(self, x: Streams, call: Call) -> Streams:
        """Map the stream; see the base class."""
        return (call(0, self._forward, x[0]),)

    def undo(self, y: Streams) -> Streams:
        """Map the stream back; see the base class."""
        return (self._inverse(y[0]),)

    def backtrack(self, y: Streams, grad_y: Streams, call: Call) -> tuple[Streams, list[Any]]:
        """Map back, then compute the map once more for its gradient; see the base class."""
        with torch.no_grad():
            x = call(0, self._inverse, y[0])
        _, grad_x, of_parameters = _branch_gradients(
            partial(call, 0, self._forward), x, grad_y[0], self.parameters
        )
        return (x,), [grad_x, *of_parameters]


def run_steps(
    steps: Sequence[Step | StepGroup],
    streams: Streams,
    memory: MemoryMode = "plain",
    checkpoint_function: Checkpoint = NON_REENTRANT,
) -> Tensor:
    """Run the steps one after the other and return the sum of the streams.

    Args:
        steps: in the order of the signal.
        streams: floating tensors of one shape `(..., D)`.
        memory: "plain" keeps all activations for the backward pass, "checkpoint" the streams
            before each step and "reversible" the streams at the end and before steps that store
            their input. The result is the same, the gradients up to rounding.
        checkpoint_function: calls a function without storing its activations.

    Returns:
        `(..., D)`.
    """
    tape = _Tape()
    # A stream may be given twice. Its gradients are summed one stream at a time in every mode.
    streams = tuple(_view(stream) for stream in streams)
    # Under autocast a weight is cast again at every use: in every mode the gradients of one that
    # serves twice are then summed in its own dtype and not in bfloat16.
    device_type = streams[0].device.type
    reversible = memory == "reversible"

    def run(step: Step, streams: Streams) -> Streams:
        if reversible and step.stores_input:
            streams = _Mark.apply(tape, *streams)  # type: ignore[no-untyped-call]
        x = take(streams, step.stream_numbers)
        if reversible and not step.stores_input:
            y = _Backtrack.apply(step, tape, *x, *step.parameters)  # type: ignore[no-untyped-call]
        elif memory != "plain":
            y = checkpoint_function(partial(_run, step), *x)
        else:
            y = _run(step, *x)
        return put(streams, step.stream_numbers, y)

    with torch.autocast(device_type, **_autocast_settings(device_type)):
        streams = each_step(steps, streams, run)
    if reversible:
        streams = _Mark.apply(tape, *streams)  # type: ignore[no-untyped-call]
    return _total(streams)


def undo_steps(steps: Sequence[Step | StepGroup], streams: Streams) -> Streams:
    """Return the streams that the steps map to `streams`."""

    def undo(step: Step, streams: Streams) -> Streams:
        x = step.undo(take(streams, step.stream_numbers))
        return put(streams, step.stream_numbers, x)

    return each_step(steps, streams, undo, backwards=True)


class _Tape:
    """The streams as they were after the step whose backward pass is due."""

    streams: Streams = ()


class _Replay:
    """Computes branches, and computes them again with the same random numbers and autocast."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._autocast = _autocast_settings(device.type)
        self._states: dict[int, list[Tensor]] = {}

    def first(self, number: int, branch: Branch, x: Tensor) -> Tensor:
        self._states[number] = [torch.get_rng_state()]
        if self._device.type == "cuda":
            self._states[number].append(torch.cuda.get_rng_state(self._device))
        return branch(x)

    def again(self, number: int, branch: Branch, x: Tensor) -> Tensor:
        on_gpu = self._device.type == "cuda"
        with torch.random.fork_rng(devices=[self._device] if on_gpu else []):
            torch.set_rng_state(self._states[number][0])
            if on_gpu:
                torch.cuda.set_rng_state(self._states[number][1], self._device)
            with torch.autocast(self._device.type, **self._autocast):
                return branch(x)


class _Backtrack(torch.autograd.Function):
    """A step that saves its parameters and nothing else."""

    @staticmethod
    def forward(ctx: Any, step: Step, tape: _Tape, *tensors: Tensor) -> Streams:
        num_streams = len(step.stream_numbers)
        ctx.step, ctx.tape, ctx.replay = step, tape, _Replay(tensors[0].device)
        # Saved only for autograd's version check: if an optimiser changes a parameter before the
        # backward pass, that is an error, as in ordinary autograd, and not a wrong gradient.
        ctx.save_for_backward(*tensors[num_streams:])
        return step.run(tensors[:num_streams], ctx.replay.first)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_y: Tensor) -> tuple[Any, ...]:
        step, tape = ctx.step, ctx.tape
        _ = ctx.saved_tensors
        y = take(tape.streams, step.stream_numbers)
        x, gradients = step.backtrack(y, grad_y, ctx.replay.again)
        tape.streams = put(tape.streams, step.stream_numbers, x)
        return None, None, *gradients


class _Mark(torch.autograd.Function):
    """Stores the streams, from which the backward pass through the earlier steps starts."""

    @staticmethod
    def forward(ctx: Any, tape: _Tape, *streams: Tensor) -> Streams:
        ctx.tape = tape
        ctx.save_for_backward(*streams)
        return tuple(_view(stream) for stream in streams)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        ctx.tape.streams = tuple(stream.detach() for stream in ctx.saved_tensors)
        return None, *grads


def _branch_gradients(
    branch: Branch, x: Tensor, grad: Tensor, parameters: list[nn.Parameter]
) -> tuple[Tensor, Tensor, list[Any]]:
    """Return a branch's value at `x`, and the gradients of `x` and of each parameter (or None)."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = branch(_view(leaf)).to(grad.dtype)
    grad_x, *of_parameters = torch.autograd.grad(
        value, [leaf, *parameters], grad, allow_unused=True
    )
    return value.detach(), torch.zeros_like(x) if grad_x is None else grad_x, of_parameters


def _run(step: Step, *x: Tensor) -> Streams:
    return step.run(x, _call)


def _call(_number: int, branch: Branch, x: Tensor) -> Tensor:
    return branch(x)


def _view(x: Tensor) -> Tensor:
    return x.view_as(x)


def _total(streams: Streams) -> Tensor:
    first, *others = streams
    for other in others:
        first = first + other
    return first


def _trainable(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def _autocast_settings(device_type: str) -> dict[str, Any]:
    return {
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
        "cache_enabled": False,
    }
