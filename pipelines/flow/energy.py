"""The energy distance: how far two clouds of points are apart, as a number and as a loss.

Source: Székely and Rizzo, "Energy statistics: A class of statistics based on distances" (2013),
equation 6.

Shape legend: N points, M points, D dimensions.
"""

import torch
from torch import Tensor


def energy_distance(first_ND: Tensor, second_MD: Tensor) -> Tensor:
    """Estimate the energy distance of two distributions without bias.

    Args:
        first_ND: (N, D), at least two points of the one.
        second_MD: (M, D), at least two points of the other.

    Returns:
        2 E|x - y| - E|x - x'| - E|y - y'|, each mean over pairs of different points, a scalar:
        0 on average where both are of one distribution, and then as often below as above.
    """
    between = _distances(first_ND, second_MD).mean()
    first, second = (
        _distances(cloud, cloud).sum() / (len(cloud) * (len(cloud) - 1))
        for cloud in (first_ND, second_MD)
    )
    return 2 * between - first - second


def _distances(first_ND: Tensor, second_MD: Tensor) -> Tensor:
    # From differences and not from squares and products: a point is at 0 from itself.
    return torch.cdist(first_ND, second_MD, compute_mode="donot_use_mm_for_euclid_dist")
