"""A mixture of normal distributions, as the prior of a flow whose data form clusters.

A flow is continuous and invertible: it cannot tear one cloud into clusters, and what it leaves
between them is where its samples go wrong (Cornish et al., "Relaxing Bijectivity Constraints with
Continuously Indexed Normalising Flows", 2020). A mixture has clusters before the flow learns.

Shape legend: K components, D dimensions, C components of a chunk.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GaussianMixture"]

_CHUNK = 32
"""Components scored at a time: the products then stay in the cache of a CPU."""


class GaussianMixture(nn.Module):
    """A mixture of normal distributions with full covariances.

    `of` makes one from weights, means and covariances; the constructor makes equal standard ones,
    for a file to fill.

    Args:
        num_components: K, at least 1.
        d: width of the vectors, at least 1.
        trainable: False holds the tensors as buffers, which no optimiser changes. True makes them
            parameters, which learn with the flow. Weights that a trainable mixture has learned
            can be loaded into a fixed one.

    Attributes:
        log_weights: (K,), logarithms of the weights; of a trainable mixture they need not be
            normalised, which its density takes care of.
        means: (K, D).
        factors: (K, D, D), the inverse of the Cholesky factor of each covariance, so lower
            triangular: `factor @ (x - mean)` is standard normal. What a trainable mixture has above
            the diagonal is not read.

    Examples:
        >>> prior = GaussianMixture.of(torch.ones(2), torch.eye(2), torch.eye(2).expand(2, 2, 2))
        >>> prior.log_prob(torch.zeros(5, 2)).shape, prior.sample((3,)).shape
        (torch.Size([5]), torch.Size([3, 2]))
    """

    log_weights: Tensor
    means: Tensor
    factors: Tensor
    trainable = False  # of modules that were pickled before mixtures could learn

    def __init__(self, num_components: int, d: int, *, trainable: bool = False) -> None:
        super().__init__()
        if min(num_components, d) < 1:
            raise ValueError(
                f"expected at least one component and channel, got {num_components, d}"
            )
        self.trainable = trainable
        parts = {
            "log_weights": torch.full((num_components,), -math.log(num_components)),
            "means": torch.zeros(num_components, d),
            "factors": torch.eye(d).repeat(num_components, 1, 1),
        }
        for name, part in parts.items():
            if trainable:
                self.register_parameter(name, nn.Parameter(part))
            else:
                self.register_buffer(name, part)

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        weights_K: Tensor,
        means_KD: Tensor,
        covariances_KDD: Tensor,
        *,
        trainable: bool = False,
    ) -> GaussianMixture:
        """Make a mixture, in the dtype and on the device of the means.

        Args:
            weights_K: positive; they need not add up to 1.
            means_KD: the means.
            covariances_KDD: symmetric and positive definite.
            trainable: see the class.

        Raises:
            ValueError: for shapes that do not match, values that are not finite, or weights and
                covariances that are not positive, or not symmetric.
        """
        shape = (*means_KD.shape, *means_KD.shape[-1:])
        if (
            means_KD.ndim != 2
            or not means_KD.is_floating_point()
            or weights_K.shape != shape[:1]
            or covariances_KDD.shape != shape
        ):
            raise ValueError(
                f"expected weights (K,), floating means (K, D) and covariances (K, D, D), got "
                f"{tuple(weights_K.shape)}, {tuple(means_KD.shape)} ({means_KD.dtype}), "
                f"{tuple(covariances_KDD.shape)}"
            )
        if not bool(weights_K.isfinite().all() & means_KD.isfinite().all()):
            raise ValueError("expected finite weights and means, got NaN or infinity")
        if not torch.allclose(
            covariances_KDD, covariances_KDD.mT, rtol=1e-3, atol=1e-6, equal_nan=True
        ):
            raise ValueError(
                "expected symmetric covariances, got one that differs from its transpose; to fix "
                "this: take the mean of the two"
            )
        lower_KDD, failed_K = torch.linalg.cholesky_ex(covariances_KDD)
        bad = failed_K.bool() | ~(weights_K > 0) | ~lower_KDD.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            raise ValueError(
                "expected positive weights and positive definite covariances, got component "
                f"{int(bad.nonzero()[0])} without; to fix this: add a little to the diagonal"
            )
        mixture = cls(*means_KD.shape, trainable=trainable).to(means_KD)
        mixture.log_weights.copy_((weights_K / weights_K.sum()).log())
        mixture.means.copy_(means_KD)
        identity_DD = torch.eye(means_KD.shape[1]).to(lower_KDD)
        mixture.factors.copy_(torch.linalg.solve_triangular(lower_KDD, identity_DD, upper=False))
        return mixture

    @property
    def num_components(self) -> int:
        """K."""
        return len(self.means)

    @property
    def d(self) -> int:
        """Width of the vectors."""
        return self.means.shape[1]

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density in nats, `(...)`, at `x` `(..., d)`."""
        with torch.autocast(x.device.type, enabled=False):  # in bf16 it is nats off
            return self._log_prob(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        log_weights_K, factors_KDD = self._normalised()
        shifts_KD = torch.einsum("kij,kj->ki", factors_KDD, self.means)
        chunks = []
        for factors_CDD, shifts_CD in zip(
            torch.split(factors_KDD, _CHUNK), torch.split(shifts_KD, _CHUNK), strict=True
        ):
            product = x @ factors_CDD.flatten(0, 1).T
            white = product.view(*x.shape[:-1], *shifts_CD.shape) - shifts_CD
            chunks.append(white.square().sum(-1))
        # Training may turn the sign of a diagonal entry; the volume has none.
        log_volume_K = factors_KDD.diagonal(dim1=1, dim2=2).abs().log().sum(-1)
        constants_K = log_weights_K + log_volume_K - 0.5 * self.d * math.log(2 * math.pi)
        return (constants_K - 0.5 * torch.cat(chunks, dim=-1)).logsumexp(-1)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.trainable or self.log_weights.is_meta:
            return
        if bool((self.log_weights.exp().sum() - 1).abs() < 1e-3):
            return
        # Learned, and now frozen: a fixed mixture takes its weights and factors as they are.
        with torch.no_grad():
            self.log_weights.copy_(self.log_weights.log_softmax(-1))
            self.factors.tril_()

    def _normalised(self) -> tuple[Tensor, Tensor]:
        """Return log weights that add up to 1 as probabilities, and lower triangular factors."""
        if not self.trainable:
            return self.log_weights, self.factors
        return self.log_weights.log_softmax(-1), self.factors.tril()

    def sample(
        self,
        sample_shape: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
        *,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw `(*sample_shape, d)`, on the device of the mixture.

        Of a trainable mixture they carry the gradient of means and factors, and can have none of
        the weights: which component a vector comes from does not change by small steps.

        Args:
            sample_shape: how many.
            generator: a source of randomness on any device: the same seed gives the same vectors
                on every device. None takes torch's default.
            temperature: scales how far vectors are from the mean of their component.
        """
        log_weights_K, factors_KDD = self._normalised()
        home = self.means.device if generator is None else generator.device
        count = math.prod(sample_shape)
        component_N = torch.multinomial(
            log_weights_K.detach().exp().to(home),
            max(count, 1),
            replacement=True,
            generator=generator,
        )[:count].to(self.means.device)
        white_ND = torch.randn(
            count, self.d, generator=generator, dtype=self.means.dtype, device=home
        ).to(self.means.device)
        x_ND = torch.empty_like(white_ND)
        for component in torch.unique(component_N).tolist():
            rows = component_N == component
            away_DN = torch.linalg.solve_triangular(
                factors_KDD[component], white_ND[rows].T, upper=False
            )
            x_ND[rows] = self.means[component] + temperature * away_DN.T
        return x_ND.view(*sample_shape, self.d)

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        shape = f"num_components={self.num_components}, d={self.d}"
        return f"{shape}, trainable=True" if self.trainable else shape
