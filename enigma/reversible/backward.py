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
  nested `backward`: DDP and tensor hooks see each of them once, even if a parameter serves in two
  steps;
* a recomputation sees the autocast of the first pass and the random numbers that it drew from
  torch's default generators, of the CPU and of the device of the streams;
* the vector-Jacobian product sees the autocast under which `backward` is called, as in ordinary
  autograd;
* a branch reads a view of its stream, so that the contributions to a gradient are summed in the
  same order in every mode. With the streams on the grid of exact mode, where reconstruction is
  exact, the gradients then equal those of ordinary autograd bit for bit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from enigma.bijections.step_groups import Receive, StepGroup, each_step, put, take
from enigma.layers.transforms import transforms_active
from enigma.reversible.steps import Branch, Step, Streams, view

__all__ = ["NON_REENTRANT", "Checkpoint", "MemoryMode", "run_steps", "run_streams", "undo_steps"]

MemoryMode = Literal["plain", "checkpoint", "reversible"]
"""What the backward pass finds: all activations, one input per step, or the stored streams only."""

Checkpoint = Callable[..., Any]
_REMEDY = "reversible mode cannot give this; to fix this: use memory='plain'"
_Settings: TypeAlias = dict[tuple[int, str, str], bool | float | str]
NON_REENTRANT: Checkpoint = partial(checkpoint, use_reentrant=False)


def run_steps(
    steps: Sequence[Step | StepGroup],
    streams: Streams,
    memory: MemoryMode = "plain",
    checkpoint_function: Checkpoint = NON_REENTRANT,
) -> Tensor:
    """Run the steps one after the other and return the sum of the streams; see `run_streams`."""
    return _total(run_streams(steps, streams, memory, checkpoint_function))


def run_streams(
    steps: Sequence[Step | StepGroup],
    streams: Streams,
    memory: MemoryMode = "plain",
    checkpoint_function: Checkpoint = NON_REENTRANT,
) -> Streams:
    """Run the steps one after the other and return the streams after the last.

    Args:
        steps: in the order of the signal.
        streams: floating tensors, for `run_steps` of one shape `(..., D)`.
        memory: "plain" keeps all activations for the backward pass, "checkpoint" the streams
            before each step and "reversible" the streams at the end, before steps that store
            their input, and where hooks replace them. The result is the same, the gradients up to
            rounding.
        checkpoint_function: calls a function without storing its activations. That of torch
            repeats no random numbers of MPS.

    Raises:
        RuntimeError: for "reversible" inside a transform of `torch.func` or forward-mode
            differentiation, for a hook that writes into a stream, or where its backward pass is
            to be differentiated; in the backward pass of "checkpoint" and "reversible", if a module
            was switched, say from training to evaluation, since the forward pass.
    """
    reversible = memory == "reversible"
    if reversible and transforms_active():
        raise RuntimeError(
            "expected no transform of torch.func and no forward-mode derivative here, got one; "
            f"{_REMEDY}"
        )
    tape = _Tape()
    # A stream may be given twice. Its gradients are summed one stream at a time in every mode.
    streams = tuple(view(stream) for stream in streams)
    # Under autocast a weight is cast again at every use: in every mode the gradients of one that
    # serves twice are then summed in its own dtype and not in bfloat16.
    device_type = streams[0].device.type

    def run(step: Step, streams: Streams) -> Streams:
        stores_input = reversible and (step.stores_input or step.hooked)
        if stores_input:
            streams = tape.mark(streams, streams)
        x = take(streams, step.stream_numbers)
        if reversible and not stores_input:
            y = _Backtrack.apply(step, tape, *x, *step.parameters)  # type: ignore[no-untyped-call]
        elif memory != "plain":
            y = checkpoint_function(partial(_run_unchanged, step, _settings(step.modules)), *x)
        else:
            y = step.run(x, _call)
        return put(streams, step.stream_numbers, y)

    with torch.autocast(device_type, **_autocast_settings(device_type)):
        if not reversible:
            return each_step(steps, streams, run)
        streams = each_step(steps, streams, run, hand_over=tape.hand_over)
    return tape.mark(streams, streams)


def undo_steps(steps: Sequence[Step | StepGroup], streams: Streams) -> Streams:
    """Return the streams that the steps map to `streams`."""

    def undo(step: Step, streams: Streams) -> Streams:
        x = step.undo(take(streams, step.stream_numbers))
        return put(streams, step.stream_numbers, x)

    return each_step(steps, streams, undo, backwards=True)


class _Tape:
    """The streams as they were after the step whose backward pass is due."""

    streams: Streams = ()

    def mark(self, stored: Streams, streams: Streams) -> Streams:
        """Return the streams; the backward pass goes on from the stored ones."""
        marked: Streams = _Mark.apply(self, stored, *streams)  # type: ignore[no-untyped-call]
        return marked

    def hand_over(self, streams: Streams) -> Receive:
        """Store the streams if the hooks of a module replace them: hooks cannot be undone."""
        versions = [stream._version for stream in streams]  # noqa: SLF001 - no public name

        def receive(after_hooks: Streams) -> Streams:
            if versions != [stream._version for stream in streams]:  # noqa: SLF001
                raise RuntimeError(
                    "expected hooks that leave the streams of a module as they are or return other "
                    "tensors, got one that writes into a stream, which reversible mode could not "
                    "undo; to fix this: return a new tensor from the hook, or use memory='plain'"
                )
            if all(map(operator.is_, streams, after_hooks)):
                return streams
            return self.mark(streams, after_hooks)

        return receive


class _FirstPass:
    """What a step was in the first pass: computes branches, and computes them again like that."""

    def __init__(self, step: Step, device: torch.device, parameters: Sequence[Tensor]) -> None:
        self._step = step
        self._device = device
        # The module of torch that knows the device's own generator.
        self._accelerator: Any = None if device.type == "cpu" else getattr(torch, device.type, None)
        self._parameters = parameters
        self._settings = _settings(step.modules)
        self._autocast = _autocast_settings(device.type)
        self._states: dict[int, list[Tensor]] = {}

    def check(self) -> None:
        """Raise an error if the step would now compute something else."""
        _check_settings(self._step, self._settings)
        if list(map(id, self._step.parameters)) != list(map(id, self._parameters)):
            raise RuntimeError(
                "expected the trainable parameters of the forward pass, got others; to fix this: "
                "freeze, unfreeze and replace parameters after the backward pass, or use "
                "memory='plain'"
            )

    def first(self, number: int, branch: Branch, x: Tensor) -> Tensor:
        before = self._random_states()
        y = branch(x)
        # Most branches draw nothing, and to replay the generators takes 40 us.
        if not all(map(_unmoved, before, self._random_states())):
            self._states[number] = before
        return y

    def again(self, number: int, branch: Branch, x: Tensor) -> Tensor:
        with torch.autocast(self._device.type, **self._autocast):
            if number not in self._states:
                return branch(x)
            now = self._random_states()
            try:
                self._set_random_states(self._states[number])
                return branch(x)
            finally:
                self._set_random_states(now)

    def _random_states(self) -> list[Tensor]:
        """Return the states of the generators, which are in host memory for a GPU too."""
        states = [torch.get_rng_state()]
        if hasattr(self._accelerator, "get_rng_state"):
            states.append(self._accelerator.get_rng_state(self._device))
        return states

    def _set_random_states(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for state in states[1:]:
            self._accelerator.set_rng_state(state, self._device)


class _Backtrack(torch.autograd.Function):
    """A step that saves its parameters and nothing else."""

    @staticmethod
    def forward(ctx: Any, step: Step, tape: _Tape, *tensors: Tensor) -> Streams:
        num_streams = len(step.stream_numbers)
        ctx.step, ctx.tape = step, tape
        ctx.first_pass = _FirstPass(step, tensors[0].device, tensors[num_streams:])
        # Saved only for autograd's version check: if an optimiser changes a parameter before the
        # backward pass, that is an error, as in ordinary autograd, and not a wrong gradient.
        ctx.save_for_backward(*tensors[num_streams:])
        return step.run(tensors[:num_streams], ctx.first_pass.first)

    @staticmethod
    def backward(ctx: Any, *grad_y: Tensor) -> tuple[Any, ...]:
        step, tape = ctx.step, ctx.tape
        _ = ctx.saved_tensors
        ctx.first_pass.check()
        y = take(tape.streams, step.stream_numbers)
        x, gradients = step.backtrack(y, grad_y, ctx.first_pass.again)
        tape.streams = put(tape.streams, step.stream_numbers, x)
        return None, None, *gradients


class _Mark(torch.autograd.Function):
    """Stores streams, from which the backward pass through the earlier steps starts."""

    @staticmethod
    def forward(ctx: Any, tape: _Tape, stored: Streams, *streams: Tensor) -> Streams:
        ctx.tape = tape
        ctx.save_for_backward(*stored)
        return tuple(view(stream) for stream in streams)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        # Every backward pass starts at a mark. It records gradients if they are to be
        # differentiated again, but they are computed from tensors without a history.
        if torch.is_grad_enabled():
            raise RuntimeError(f"expected first derivatives, got create_graph=True; {_REMEDY}")
        ctx.tape.streams = tuple(stream.detach() for stream in ctx.saved_tensors)
        return None, None, *grads


def _settings(modules: Sequence[nn.Module]) -> _Settings:
    """Return the public switches and numbers of modules and their parts, such as `training`.

    Whole numbers are left out: some modules count their calls.
    """
    return {
        (id(part), type(part).__name__, name): value
        for module in modules
        for part in module.modules()
        for name, value in vars(part).items()
        if isinstance(value, bool | float | str) and not name.startswith("_")
    }


def _check_settings(step: Step, before: _Settings) -> None:
    now = _settings(step.modules)
    changed = sorted(dict(before.items() ^ now.items()))
    if changed:
        _, name, setting = changed[0]
        then_and_now = [each.get(changed[0], "nothing") for each in (before, now)]
        raise RuntimeError(
            f"expected {name}.{setting} = {then_and_now[0]} as in the forward pass, got "
            f"{then_and_now[1]}; to fix this: change modules after the backward pass, or use "
            "memory='plain'"
        )


def _run_unchanged(step: Step, before: _Settings, *x: Tensor) -> Streams:
    _check_settings(step, before)
    return step.run(x, _call)


def _call(_number: int, branch: Branch, x: Tensor) -> Tensor:
    return branch(x)


def _total(streams: Streams) -> Tensor:
    first, *others = streams
    for other in others:
        first = first + other
    return first


def _unmoved(before: Tensor, after: Tensor) -> bool:
    """Whether a generator has drawn nothing between its two states, both in host memory."""
    # Fake tensors and other modes must not see the comparison.
    with torch._C._DisableTorchDispatch():  # noqa: SLF001 - torch has no public name for it
        return torch.equal(before, after)


def _autocast_settings(device_type: str) -> dict[str, Any]:
    return {
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
        "cache_enabled": False,
    }
