"""Points that tests compare."""

import torch


def points(seed: int, *, mean: float = 0.0, count: int = 600) -> torch.Tensor:
    """Draw from a normal distribution in 4 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(count, 4, generator=generator)
