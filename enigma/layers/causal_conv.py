"""A causal depthwise convolution over the tokens.

Legend: k taps, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from enigma.bijections.base import TokenContext

__all__ = ["CausalConv"]


class CausalConv(nn.Module):
    """y_t = sum over j < k of w_j x_(t - j), per channel; the identity at the start.

    Before the first token, and at padding, x is 0. With a cache in `context` the earlier
    tokens are those of the cache.

    Args:
        num_channels: width C.
        kernel_size: taps k, at least 1.

    Raises:
        ValueError: for a kernel below 1.

    Examples:
        >>> CausalConv(num_channels=2, kernel_size=3)(torch.ones(1, 4, 2)).shape
        torch.Size([1, 4, 2])
    """

    def __init__(self, num_channels: int, kernel_size: int) -> None:
        super().__init__()
        if kernel_size < 1:
            raise ValueError(f"kernel_size must be at least 1, got {kernel_size}")
        self.kernel_size = kernel_size
        self.taps = nn.Parameter(torch.empty(kernel_size, num_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Pass the token itself and ignore earlier ones."""
        nn.init.zeros_(self.taps)
        nn.init.ones_(self.taps[0])

    def forward(self, x: Tensor, context: TokenContext | None = None) -> Tensor:
        """Map `(..., L, C)` to the same shape."""
        if x.ndim == 1:
            return self.forward(x.unsqueeze(0), context)[0]
        length = x.shape[-2]
        if context is not None and context.mask is not None:
            x = x * context.mask.to(x.dtype)
        if context is not None and context.cache is not None:
            x = context.cache.extend(x, self.kernel_size - 1)
        missing = length + self.kernel_size - 1 - x.shape[-2]
        return self.convolve(functional.pad(x, (0, 0, missing, 0)), length)

    def convolve(self, padded: Tensor, length: int) -> Tensor:
        """Return the last `length` sums of `padded` `(..., length + k - 1, C)`."""
        y = padded[..., self.kernel_size - 1 :, :] * self.taps[0]
        for back in range(1, self.kernel_size):
            first = self.kernel_size - 1 - back
            y = y + padded[..., first : first + length, :] * self.taps[back]
        return y
