"""Whether a module has hooks, which a computation that does not call it would leave out."""

from __future__ import annotations

from torch import nn

__all__ = ["has_hooks"]


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks, its own or those of all modules."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    # torch has no public name for the hooks of all modules, by which profilers count.
    of_all = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]  # noqa: SLF001
    return bool(of_all) or any(getattr(module, name) for name in names)
