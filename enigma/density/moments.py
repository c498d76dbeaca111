"""Mean and spread of data, to which a flow is fitted before it learns."""

from __future__ import annotations

from torch import Tensor

__all__ = ["moments"]


def moments(data_ND: Tensor, width: int, what: str) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, `(D,)` each.

    Args:
        data_ND: floating `(N, D)`, at least 2 rows.
        width: D.
        what: how an error names a channel.

    Raises:
        ValueError: for another shape, or a channel that is constant or not finite.
    """
    if data_ND.ndim != 2 or data_ND.shape[0] < 2 or data_ND.shape[1] != width:
        raise ValueError(f"expected at least 2 rows of {width}, got {tuple(data_ND.shape)}")
    scale = data_ND.std(dim=0)
    # The spread of a constant may be a rounding error instead of 0.
    varies = (scale > 0) & (data_ND.amax(dim=0) > data_ND.amin(dim=0))
    if not bool(varies.all()):
        constant = int((~varies).nonzero()[0])
        raise ValueError(
            f"expected channels that vary, got {what} {constant} constant or not finite; "
            "to fix this: drop it, or add noise"
        )
    return data_ND.mean(dim=0), scale
