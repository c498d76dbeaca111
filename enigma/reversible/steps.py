"""Invertible steps over two or more streams, and the gradients of their branches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from enigma.couplings.transforms import Shift
from enigma.layers.hooks import has_hooks

__all__ = ["BijectionStep", "Branch", "Call", "CouplingStep", "Step", "Streams", "view"]

Streams: TypeAlias = tuple[Tensor, ...]
Branch = Callable[[Tensor], Tensor]
Call = Callable[[int, Branch, Tensor], Tensor]


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
    def hooked(self) -> bool:
        """Whether hooks may change its map so that it cannot be undone; then too it stores."""
        return False

    @property
    @abstractmethod
    def modules(self) -> list[nn.Module]:
        """The modules whose parameters and settings decide what the step computes."""

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
        owner: the module whose settings belong to the branches', if not among theirs.
    """

    def __init__(
        self,
        f: tuple[Branch, Sequence[nn.Module]],
        g: tuple[Branch, Sequence[nn.Module]],
        stream_numbers: tuple[int, ...],
        *,
        widths: list[int] | None = None,
        exact: bool = False,
        owner: nn.Module | None = None,
    ) -> None:
        self.stream_numbers = stream_numbers
        self._f, self._f_modules = f
        self._g, self._g_modules = g
        self._widths = widths
        self._shift = Shift(exact)
        self._owner = owner

    @property
    def modules(self) -> list[nn.Module]:
        """Those of both branches, and their owner; see the base class."""
        own = [] if self._owner is None else [self._owner]
        return [*own, *self._f_modules, *self._g_modules]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those of the first branch, then those of the second."""
        return [*_trainable(self._f_modules), *_trainable(self._g_modules)]

    def run(self, x: Streams, call: Call) -> Streams:
        """Move the first, then the second; see the base class."""
        x1, x2 = self._parts(x)
        y1, _ = self._shift.forward(x1, _fitting(call(0, self._f, view(x2)), x1))
        y2, _ = self._shift.forward(x2, _fitting(call(1, self._g, view(y1)), x2))
        return self._whole(y1, y2)

    def undo(self, y: Streams) -> Streams:
        """Move the second back, then the first; see the base class."""
        y1, y2 = self._parts(y)
        x2, _ = self._shift.inverse(y2, _fitting(self._g(y1), y2))
        x1, _ = self._shift.inverse(y1, _fitting(self._f(x2), y1))
        return self._whole(x1, x2)

    def backtrack(self, y: Streams, grad_y: Streams, call: Call) -> tuple[Streams, list[Any]]:
        """Undo, computing each branch once for the value and the gradient; see the base class."""
        y1, y2 = self._parts(y)
        grad_y1, grad_y2 = self._parts(grad_y)
        change, from_g, of_g = _branch_gradients(
            partial(call, 1, self._g), y1, grad_y2, _trainable(self._g_modules)
        )
        x2, _ = self._shift.inverse(y2, change)
        grad_y1 = grad_y1 + from_g
        del change, from_g  # the next branch may decide how much memory training takes
        change, from_f, of_f = _branch_gradients(
            partial(call, 0, self._f), x2, grad_y1, _trainable(self._f_modules)
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

    @property
    def hooked(self) -> bool:
        """Whether the bijection or a part of it has hooks; see the base class."""
        return any(map(has_hooks, self._module.modules()))

    @property
    def modules(self) -> list[nn.Module]:
        """The bijection; see the base class."""
        return [self._module]

    @property
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


def _fitting(change: Tensor, stream: Tensor) -> Tensor:
    """Return what a branch adds to a stream in its dtype; broadcast, it could not be undone."""
    if change.shape != stream.shape:
        raise ValueError(
            f"expected a branch that returns {tuple(stream.shape)}, the shape of the stream to "
            f"which it is added, got {tuple(change.shape)}"
        )
    return change.to(stream.dtype)


def _branch_gradients(
    branch: Branch, x: Tensor, grad: Tensor, parameters: list[nn.Parameter]
) -> tuple[Tensor, Tensor, list[Any]]:
    """Return a branch's value at `x`, and the gradients of `x` and of each parameter (or None)."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = branch(view(leaf)).to(grad.dtype)
    known = [leaf, *parameters]
    _refuse_captured(value, known)
    with _without_hooks(parameters):
        grad_x, *of_parameters = (
            torch.autograd.grad(value, known, grad, allow_unused=True)
            if value.requires_grad
            else [None] * len(known)
        )
    return value.detach(), torch.zeros_like(x) if grad_x is None else grad_x, of_parameters


@contextmanager
def _without_hooks(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Set the tensor hooks of parameters aside: autograd runs them on the sum of all uses."""
    # torch has no public name for them. One parameter may be given twice.
    found = {p: p._backward_hooks for p in parameters if p._backward_hooks}  # noqa: SLF001
    try:
        for parameter in found:
            parameter._backward_hooks = None  # noqa: SLF001
        yield
    finally:
        for parameter, hooks in found.items():
            parameter._backward_hooks = hooks  # noqa: SLF001


def _refuse_captured(value: Tensor, known: list[Tensor]) -> None:
    """Raise an error if the graph of a branch ends in a tensor beside its input and parameters.

    The gradient of such a tensor would be lost.
    """
    allowed = {id(tensor) for tensor in known}
    seen: set[Any] = {None}
    waiting: list[Any] = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in allowed:
            raise RuntimeError(
                "expected a branch that depends on its stream and on parameters of its modules "
                f"alone, got one that reads another tensor {tuple(leaf.shape)} which wants a "
                "gradient; to fix this: name the module that owns it, detach it, or use "
                "memory='plain'"
            )
        waiting += [before for before, _ in node.next_functions]


def view(x: Tensor) -> Tensor:
    """Return `x` as a tensor of its own in the graph, over the same memory."""
    return x.view_as(x)


def _trainable(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]
