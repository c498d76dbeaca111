"""The full-covariance Gaussian: the baseline of the flow, and the map that whitens for it.

Both uses are one object on purpose. The flow is fitted to the whitened states and
starts as a rotation, so before its first step, without a mixture behind it, it *is* this
Gaussian; whatever it gains is not Gaussian.

Shape legend: N states, D dimensions.
"""

from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

from pipelines.base.errors import UserError


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution N(mean, L L^T).

    Args:
        mean: (D,) float64.
        factor: (D, D) float64, the Cholesky factor L, lower triangular with a
            positive diagonal.
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def fit(cls, states_ND: Tensor, *, noise_std: float) -> "Gaussian":
        """Fit by maximum likelihood to states with white noise, averaged over the noise.

        Args:
            states_ND: (N, D) of any floating dtype, without the noise.
            noise_std: Standard deviation of the noise; its variance is added to the
                diagonal of the covariance, which also keeps the covariance invertible.

        Returns:
            The Gaussian. Its parameters are rounded to float32, as they are stored, so
            it is the same before and after a file.

        Raises:
            UserError: If there are fewer than two states per dimension, or if a
                state is not finite.
        """
        num_states, num_dims = states_ND.shape
        if num_states < 2 * num_dims:
            raise UserError(
                f"covariance of {num_dims} dimensions: expected at least {2 * num_dims} states, "
                f"got {num_states}",
                "raise train_flow.train_states, or give the split more documents",
            )
        exact_ND = states_ND.double()
        if not exact_ND.isfinite().all():
            raise UserError(
                "expected finite hidden states, got NaN or infinity",
                "retrain the language model; its weights are damaged",
            )
        mean_D = exact_ND.mean(dim=0)
        centred_ND = exact_ND - mean_D
        covariance_DD = centred_ND.T @ centred_ND / num_states
        covariance_DD.diagonal().add_(noise_std**2)
        factor_DD = torch.linalg.cholesky(covariance_DD)
        return cls(mean_D.float().double(), factor_DD.float().double())

    @property
    def log_det(self) -> float:
        """Log of |det dx/dy| of `colour`, in nats."""
        return float(self.factor.diagonal().log().sum())

    def whiten(self, states_ND: Tensor) -> Tensor:
        """Map states to coordinates of mean 0 and covariance 1; (N, D) float64."""
        return self.whiten_difference(states_ND.double() - self.mean)

    def whiten_difference(self, difference_ND: Tensor) -> Tensor:
        """Map a difference of states to a difference of coordinates; (N, D) float64."""
        white_DN: Tensor = torch.linalg.solve_triangular(
            self.factor, difference_ND.double().T, upper=False
        )
        return white_DN.T

    def colour(self, white_ND: Tensor) -> Tensor:
        """Invert `whiten`; (N, D) float64."""
        return white_ND.double() @ self.factor.T + self.mean

    def log_prob(self, states_ND: Tensor) -> Tensor:
        """Return the log density of each state in nats, (N,) float64."""
        white_ND = self.whiten(states_ND)
        constant = white_ND.shape[1] * log(2 * pi)
        return -0.5 * (white_ND.square().sum(dim=1) + constant) - self.log_det

    def sample(self, count: int, *, seed: int) -> Tensor:
        """Draw states, (count, D) float32."""
        generator = torch.Generator().manual_seed(seed)
        return self.colour(torch.randn(count, len(self.mean), generator=generator)).float()
