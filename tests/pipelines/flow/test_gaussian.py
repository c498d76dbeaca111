"""The Gaussian baseline agrees with SciPy, and is the same in memory and in a file."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from pipelines.base.errors import UserError
from pipelines.flow.gaussian import Gaussian


@pytest.fixture
def states() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing_DD = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return torch.randn(500, 6, generator=generator, dtype=torch.float64) @ mixing_DD + 3.0


def test_log_prob_equals_scipy(states):
    gaussian = Gaussian.fit(states, noise_std=0.1)
    covariance = np.cov(states.T.numpy(), bias=True)
    covariance += 0.1**2 * np.eye(6)
    expected = multivariate_normal(states.mean(0).numpy(), covariance).logpdf(states.numpy())
    # The parameters are rounded to float32 when they are fitted.
    np.testing.assert_allclose(gaussian.log_prob(states).numpy(), expected, rtol=1e-5)


def test_whitened_states_are_standard_and_come_back(states):
    gaussian = Gaussian.fit(states, noise_std=0.0)
    white_ND = gaussian.whiten(states)
    torch.testing.assert_close(
        torch.cov(white_ND.T, correction=0), torch.eye(6).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(gaussian.colour(white_ND), states, atol=1e-12, rtol=0)


def test_log_det_is_that_of_the_jacobian(states):
    gaussian = Gaussian.fit(states, noise_std=0.0)
    jacobian = torch.autograd.functional.jacobian(
        lambda y: gaussian.colour(y[None])[0], torch.zeros(6).double()
    )
    assert gaussian.log_det == pytest.approx(
        torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-9
    )


def test_parameters_survive_float32(states):
    gaussian = Gaussian.fit(states, noise_std=0.1)
    assert torch.equal(gaussian.factor.float().double(), gaussian.factor)
    assert torch.equal(gaussian.mean.float().double(), gaussian.mean)


def test_too_few_states_are_refused(states):
    with pytest.raises(UserError, match="expected at least 12 states, got 11"):
        Gaussian.fit(states[:11], noise_std=0.1)


def test_a_state_that_is_not_finite_is_refused(states):
    states[3, 2] = float("nan")
    with pytest.raises(UserError, match="finite"):
        Gaussian.fit(states, noise_std=0.1)
