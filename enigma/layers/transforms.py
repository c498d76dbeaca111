"""Whether derivatives other than those of ordinary backward passes are being taken.

An autograd function that is written by hand gives what `backward` needs. Transforms of `torch.func`
and forward-mode derivatives look through the operations instead.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

__all__ = ["transforms_active"]


def transforms_active() -> bool:
    """Return whether a transform of `torch.func` or forward-mode differentiation is at work.

    Examples:
        >>> transforms_active()
        False
    """
    # torch has no public name for either.
    functional: bool = torch._C._are_functorch_transforms_active()  # noqa: SLF001
    return functional or forward_ad._current_level >= 0  # noqa: SLF001
