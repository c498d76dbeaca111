"""The mixture of Gaussians that the flow over token states starts from.

States are clustered by what comes next, and a flow does not tear one Gaussian into clusters (ADR
22). Clusters are found by k-means. Each has few states for a full covariance, so it is shrunk
towards the covariance within all clusters, scaled to this cluster: clusters have similar shapes,
but differ in size. Expectation-maximisation from here costs twenty times as much and gains little.

Shape legend: N points, K components, D dimensions.
"""

import torch
from torch import Tensor

from enigma.density.mixture import GaussianMixture
from pipelines.params import MixtureParams

ITERATIONS = 8
POINTS_PER_BATCH = 4096


def fit_mixture(
    points_ND: Tensor, noise_DD: Tensor, params: MixtureParams, *, seed: int
) -> GaussianMixture:
    """Fit a mixture to points with Gaussian noise, averaged over the noise.

    Args:
        points_ND: (N, D) points without noise, of similar width in all directions.
        noise_DD: (D, D), the covariance of the noise.
        params: Number of components, at most one per two points, and pseudo-counts.
        seed: Seed of the first centres.

    Returns:
        The mixture, in the dtype and on the device of the points.
    """
    cluster_N = _clusters(points_ND, min(params.components, len(points_ND) // 2), seed)
    # A cluster may have lost all of its points.
    _, cluster_N, count_K = torch.unique(cluster_N, return_inverse=True, return_counts=True)
    count_K = count_K.to(points_ND.dtype)
    mean_KD = _sums(points_ND, cluster_N, len(count_K)) / count_K[:, None]
    scatter_KDD = torch.stack(
        [
            (away := points_ND[cluster_N == cluster] - mean_KD[cluster]).T @ away
            for cluster in range(len(count_K))
        ]
    )
    shared_DD = scatter_KDD.sum(dim=0) / len(points_ND)
    shrunk_K = count_K + params.pseudo_counts
    # The variance of a cluster in units of the mean one, shrunk towards 1.
    spread_K = scatter_KDD.diagonal(dim1=1, dim2=2).sum(dim=1)
    size_K = (spread_K / shared_DD.trace() + params.pseudo_counts) / shrunk_K
    prior_KDD = params.pseudo_counts * size_K[:, None, None] * shared_DD
    covariance_KDD = (scatter_KDD + prior_KDD) / shrunk_K[:, None, None] + noise_DD
    return GaussianMixture.of(count_K, mean_KD, covariance_KDD)


def _clusters(points_ND: Tensor, clusters: int, seed: int) -> Tensor:
    """Return the cluster of each point, (N,) int64, by k-means (Lloyd, 1982)."""
    generator = torch.Generator().manual_seed(seed)
    first_K = torch.randperm(len(points_ND), generator=generator)[:clusters]
    centre_KD = points_ND[first_K.to(points_ND.device)]
    for _ in range(ITERATIONS):
        nearest_N = _nearest(points_ND, centre_KD)
        count_K = nearest_N.bincount(minlength=clusters)
        mean_KD = _sums(points_ND, nearest_N, clusters) / count_K.clamp(min=1)[:, None]
        # The centre of an empty cluster stays where it was.
        centre_KD = torch.where(count_K[:, None] > 0, mean_KD, centre_KD)
    return _nearest(points_ND, centre_KD)


def _nearest(points_ND: Tensor, centre_KD: Tensor) -> Tensor:
    half_K = centre_KD.square().sum(dim=1) / 2
    batches = torch.split(points_ND, POINTS_PER_BATCH)
    return torch.cat([(batch_BD @ centre_KD.T - half_K).argmax(dim=1) for batch_BD in batches])


def _sums(points_ND: Tensor, cluster_N: Tensor, clusters: int) -> Tensor:
    """Add up the points of each cluster, (K, D)."""
    return points_ND.new_zeros(clusters, points_ND.shape[1]).index_add_(0, cluster_N, points_ND)
