"""The full-covariance Gaussian: the baseline of the flow, and the map that whitens for it.

Both uses are one object on purpose. The flow is fitted to the whitened states and
starts as a rotation, so before its first step it *is* this Gaussian; whatever it
gains, it gains by leaving the family.

Shape legend: N states, D dimensions.
"""

from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

from pipelines.errors import UserError


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
    def fit(cls, states_ND: Tensor, *, relative_ridge: float) -> "Gaussian":
        """Maximum likelihood, with a ridge that keeps the factor invertible.

        Args:
            states_ND: (N, D) of any floating dtype.
            relative_ridge: Added to the diagonal of the covariance, as a share
                of the mean variance.

        Returns:
            The Gaussian. Its numbers are rounded to float32, which is how they
            are stored, so that it is the same before and after a file.

        Raises:
            UserError: If there are fewer than two states a dimension, or if a
                state is not finite.
        """
        num_states, num_dims = states_ND.shape
        if num_states < 2 * num_dims:
            raise UserError(
                f"a covariance of {num_dims} dimensions: expected at least {2 * num_dims} states, "
                f"came {num_states}",
                "ask for more states, or give the split more sequences",
            )
        exact_ND = states_ND.double()
        if not exact_ND.isfinite().all():
            raise UserError(
                "expected finite hidden states, came NaN or infinity",
                "train the language model again; its weights are damaged",
            )
        mean_D = exact_ND.mean(dim=0)
        centred_ND = exact_ND - mean_D
        covariance_DD = centred_ND.T @ centred_ND / num_states
        ridge = relative_ridge * covariance_DD.diagonal().mean()
        covariance_DD.diagonal().add_(ridge)
        factor_DD, failed = torch.linalg.cholesky_ex(covariance_DD)
        if failed:
            raise UserError(
                "the covariance of the hidden states is singular",
                "train the language model again; its hidden states do not vary",
            )
        return cls(mean_D.float().double(), factor_DD.float().double())

    @property
    def log_det(self) -> float:
        """Log of |det dx/dy| of `colour`, in nats."""
        return float(self.factor.diagonal().log().sum())

    def whiten(self, states_ND: Tensor) -> Tensor:
        """Map states to coordinates of mean 0 and covariance 1; (N, D) float64."""
        centred_DN = (states_ND.double() - self.mean).T
        white_DN: Tensor = torch.linalg.solve_triangular(self.factor, centred_DN, upper=False)
        return white_DN.T

    def colour(self, white_ND: Tensor) -> Tensor:
        """Invert `whiten`; (N, D) float64."""
        return white_ND.double() @ self.factor.T + self.mean

    def log_prob(self, states_ND: Tensor) -> Tensor:
        """Log density of each state in nats, (N,) float64."""
        return standard_normal_log_prob(self.whiten(states_ND)) - self.log_det

    def to(self, device: torch.device) -> "Gaussian":
        """Copy to a device."""
        return Gaussian(self.mean.to(device), self.factor.to(device))


def standard_normal_log_prob(white_ND: Tensor) -> Tensor:
    """Log density of N(0, 1) in nats, (N,)."""
    num_dims = white_ND.shape[-1]
    return -0.5 * (white_ND.square().sum(dim=-1) + num_dims * log(2 * pi))
