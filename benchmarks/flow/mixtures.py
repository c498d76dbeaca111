"""Gaussian mixtures: the floor of the comparison of flows, and a prior for ours.

Shape legend: N vectors, D dimensions.
"""

import time
from typing import Any

import torch
from sklearn.mixture import GaussianMixture as FittedMixture
from torch import Tensor

from benchmarks.flow.peers import MIXTURE, USUAL
from benchmarks.flow.sets import FlowSet
from enigma.density.mixture import GaussianMixture
from enigma.jacobian_logdet import EnigmaFlow

COMPONENTS = (1, 2, 4, 8, 16, 32, 64)


def numbers(components: int, dim: int) -> int:
    """Return how many numbers a mixture of full covariances has."""
    return components * (1 + dim + dim * (dim + 1) // 2) - 1


def most_components(dim: int, limit: int) -> int:
    """Return the largest of `COMPONENTS` that needs at most so many numbers."""
    return max(count for count in COMPONENTS if count == 1 or numbers(count, dim) <= limit)


def choose(train_ND: Tensor, validation_ND: Tensor, most: int, seed: int) -> FittedMixture:
    """Fit mixtures by expectation-maximisation, and return the best on validation.

    Args:
        train_ND: What they are fitted to.
        validation_ND: What decides.
        most: The largest number of components.
        seed: Of the first means.
    """
    fitted = [fit(train_ND, count, seed) for count in COMPONENTS if count <= most]
    return min(fitted, key=lambda mixture: nll_nats(mixture, validation_ND))


def fit(x_ND: Tensor, components: int, seed: int) -> FittedMixture:
    """Fit a mixture with full covariances."""
    mixture = FittedMixture(components, reg_covar=1e-5, random_state=seed)
    return mixture.fit(x_ND.double().numpy())


def nll_nats(mixture: FittedMixture, x_ND: Tensor) -> float:
    """Return the mean negative log-likelihood per vector, in nats."""
    return -float(mixture.score(x_ND.double().numpy()))


def fit_floor(data: FlowSet, seed: int) -> dict[str, Any]:
    """Fit the floor: a mixture whose number of components is chosen on validation."""
    train_ND = data.noise(data.train, torch.Generator().manual_seed(seed))
    started_s = time.process_time()
    mixture = choose(train_ND, data.validation, COMPONENTS[-1], seed)
    return {
        "model": MIXTURE, "shape": USUAL, "lr": 0.0, "seed": seed,
        "components": mixture.n_components,
        "training_s": time.process_time() - started_s,
        "validation_nll_nats": nll_nats(mixture, data.validation),
        "test_nll_nats": nll_nats(mixture, data.test),
        "entropy_nats": data.entropy_nats,
    }  # fmt: skip


@torch.no_grad()
def components_behind(flow: EnigmaFlow, data: FlowSet, most: int, seed: int) -> int:
    """Return how many components are best behind a fresh flow, by validation."""
    train_ND = data.noise(data.train, torch.Generator().manual_seed(seed))
    flow.standardise(train_ND)
    return int(choose(flow(train_ND)[0], flow(data.validation)[0], most, seed).n_components)


@torch.no_grad()
def put_behind(flow: EnigmaFlow, train_ND: Tensor, components: int, seed: int) -> None:
    """Standardise a fresh flow, and make a mixture of what it maps the data to its prior."""
    flow.standardise(train_ND)
    mixture = fit(flow(train_ND)[0], components, seed)
    parts = (mixture.weights_, mixture.means_, mixture.covariances_)
    behind = GaussianMixture.of(*map(torch.from_numpy, parts), trainable=True)
    flow.prior = behind.to(train_ND)
