"""A training step on a GPU that does not exist: it counts operations and forbids host reads.

Fake tensors on a made-up device have shapes and no data, so a step takes the code paths of a GPU on
any machine. An operation whose value the host would read cannot be computed and raises an error.
The device stays registered with torch until the process ends: use a process of its own.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

DEVICE = "fake_gpu"
FREE = {"_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "new_empty"}
"""Operations that launch nothing, beside views."""
READS = {"_local_scalar_dense", "_linalg_check_errors", "equal", "is_nonzero", "item", "nonzero"}
COPIES = {"_to_copy", "copy_"}


class HostReadError(Exception):
    """The host would wait for the GPU."""


class Operations(TorchDispatchMode):
    """Counts the operations that a GPU would launch; raises an error where the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in READS:
            raise HostReadError(name)
        result = func(*args, **(kwargs or {}))
        if func.namespace in {"aten", "fused"} and not func.is_view and name not in FREE:
            self.counts[name] += 1
        if name in COPIES and {value.device.type for value in (args[0], result)} > {"cpu"}:
            raise HostReadError(f"{name} between host and device")
        return result

    @property
    def total(self) -> int:
        """All operations."""
        return self.counts.total()


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Provide the device; inside, tensors on it have no data."""
    _setup_privateuseone_for_python_backend(DEVICE, _Module())
    anything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    anything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    aten.impl("linear", _cast_linear, "AutocastPrivateUse1")
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        # What CUDA has as one kernel, and a made-up device as a dozen.
        mock.patch.object(functional, "rms_norm", lambda x, *_, **__: _rms_norm(x)),
        mock.patch.object(
            functional, "scaled_dot_product_attention", lambda q, k, v, **_: _attention(q, k, v)
        ),
    ):
        yield


def onto_fake_gpu(model: nn.Module) -> nn.Module:
    """Replace parameters and buffers of a model by fake ones; what is tied remains tied."""
    moved: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=DEVICE)
            fake = moved.setdefault(id(parameter), nn.Parameter(empty))
            module.register_parameter(name, fake)
        for name, buffer in module.named_buffers(recurse=False):
            empty = torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE)
            module.register_buffer(name, empty)
    return model


def _cast_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    with torch.autocast(DEVICE, enabled=False):
        cast = [None if each is None else each.bfloat16() for each in (x, weight, bias)]
        return functional.linear(*cast)  # type: ignore[arg-type]


def _fused(name: str, num_inputs: int, like: int) -> Callable[..., Tensor]:
    """Make an operation of several tensors that is one operation in either direction."""
    letters = "abc"[:num_inputs]
    library = torch.library.Library("fused", "FRAGMENT")
    _LIBRARIES.append(library)
    inputs = ", ".join(f"Tensor {letter}" for letter in letters)
    outputs = ", ".join(["Tensor"] * num_inputs)
    library.define(f"{name}({inputs}) -> Tensor")
    library.define(f"{name}_backward(Tensor grad, {inputs}) -> ({outputs})")
    forward = getattr(torch.ops.fused, name).default
    backward = getattr(torch.ops.fused, f"{name}_backward").default
    torch.library.register_fake(forward, lambda *x: torch.empty_like(x[like]))
    torch.library.register_fake(
        backward,
        lambda _, *x: (
            torch.empty_like(x[0]) if num_inputs == 1 else tuple(map(torch.empty_like, x))
        ),
    )
    torch.library.register_autograd(
        forward,
        lambda ctx, grad: backward(grad, *ctx.saved_tensors),
        setup_context=_save_inputs,
    )
    return forward


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


_LIBRARIES: list[torch.library.Library] = []
"""What is registered lives as long as its library."""
_rms_norm = _fused("rms_norm", 1, like=0)
_attention = _fused("attention", 3, like=2)
