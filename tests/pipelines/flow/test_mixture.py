"""A mixture finds clusters, and of one component is the Gaussian."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from enigma.density.mixture import GaussianMixture
from pipelines.flow.gaussian import Gaussian
from pipelines.flow.mixture import fit_mixture
from pipelines.params import MixtureParams

NOISE_DD = 0.01 * torch.eye(3, dtype=torch.float64)


def recipe(components: int, pseudo_counts: float) -> MixtureParams:
    return MixtureParams(
        components=components, pseudo_counts=pseudo_counts, steps=1, learning_rate=1.0
    )


def true_mixture() -> GaussianMixture:
    """Two flat clusters far apart, one three times as wide as the other."""
    flat_DD = torch.diag(torch.tensor([1.0, 0.04, 0.0], dtype=torch.float64))
    covariance_KDD = torch.stack((flat_DD, 9 * flat_DD)) + NOISE_DD
    mean_KD = torch.tensor([[-20.0, 0, 0], [20.0, 0, 0]], dtype=torch.float64)
    return GaussianMixture.of(torch.tensor([1.0, 3.0]).double(), mean_KD, covariance_KDD)


def clean_points(count: int, seed: int) -> torch.Tensor:
    """Points of `true_mixture` without the noise, which all lie in a plane."""
    generator = torch.Generator().manual_seed(seed)
    wide_N1 = torch.rand(count, 1, generator=generator) < 0.75
    axes_D = torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64)
    points_ND = axes_D * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    points_ND *= torch.where(wide_N1, 3.0, 1.0)
    points_ND[:, :1] += torch.where(wide_N1, 20.0, -20.0)
    return points_ND


def test_clusters_of_different_size_are_found_and_noise_is_added() -> None:
    params = recipe(2, 8.0)
    mixture = fit_mixture(clean_points(4000, seed=0), NOISE_DD, params, seed=0)
    held_out_ND = true_mixture().sample((4000,), torch.Generator().manual_seed(1))
    divergence = true_mixture().log_prob(held_out_ND) - mixture.log_prob(held_out_ND)
    assert 0 <= divergence.mean() < 0.02
    assert mixture.means.dtype == torch.float64


def test_pseudo_counts_help_where_clusters_have_few_points() -> None:
    held_out_ND = true_mixture().sample((2000,), torch.Generator().manual_seed(1))
    few, many = (
        fit_mixture(clean_points(40, seed=0), NOISE_DD, recipe(12, pseudo_counts), seed=0)
        for pseudo_counts in (1e-3, 4.0)
    )
    assert many.log_prob(held_out_ND).mean() > few.log_prob(held_out_ND).mean() + 1


@given(pseudo_counts=st.floats(0.1, 100), seed=st.integers(0, 1000))
def test_one_component_is_the_gaussian(pseudo_counts: float, seed: int) -> None:
    points_ND = clean_points(50, seed)
    params = recipe(1, pseudo_counts)
    mixture = fit_mixture(points_ND, NOISE_DD, params, seed=0)
    expected = Gaussian.fit(points_ND, noise_std=0.1).log_prob(points_ND)
    # The Gaussian is rounded to float32.
    torch.testing.assert_close(mixture.log_prob(points_ND), expected, rtol=1e-4, atol=1e-4)


def test_there_is_at_most_one_component_for_two_points() -> None:
    points_ND = clean_points(20, seed=0)
    params = recipe(100, 1.0)
    mixture = fit_mixture(points_ND, NOISE_DD, params, seed=0)
    assert 1 < mixture.num_components <= 10
    assert mixture.log_prob(points_ND).isfinite().all()


def test_the_same_seed_gives_the_same_mixture() -> None:
    params = recipe(7, 1.0)
    first, again, other = (
        fit_mixture(clean_points(300, seed=0), NOISE_DD, params, seed=seed).means
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_points_without_any_spread_are_refused() -> None:
    points_ND = torch.zeros(10, 3, dtype=torch.float64)
    params = recipe(2, 1.0)
    with pytest.raises(ValueError, match="positive definite covariances, got component 0 without"):
        fit_mixture(points_ND, 0 * NOISE_DD, params, seed=0)
