"""The distributions to which a flow maps data: a standard one, or one of the user's own."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional

from enigma.density.mixture import GaussianMixture

__all__ = ["Prior", "PriorName", "check_prior", "draw", "log_density", "squash", "unsquash"]

PriorName = Literal["gaussian", "uniform"]
Prior: TypeAlias = PriorName | Distribution | nn.Module
"""A standard distribution, a `GaussianMixture`, any other distribution over vectors, or a module
that returns one when called."""


def check_prior(prior: Prior, d: int) -> None:
    """Raise a ValueError unless `prior` is a distribution of vectors of `d`."""
    if isinstance(prior, GaussianMixture):
        if prior.d != d:
            raise ValueError(f"expected a prior over vectors of {d}, got {prior}")
    elif isinstance(prior, Distribution | nn.Module):
        own = _own(prior)
        if own.event_shape != (d,) or own.batch_shape or not own.has_rsample:
            raise ValueError(
                f"expected a prior over vectors of {d} that can be drawn with gradient, got {own}; "
                "to fix this: wrap it in torch.distributions.Independent(..., 1)"
            )
    elif prior not in get_args(PriorName):
        raise ValueError(
            f"prior must be one of {get_args(PriorName)} or a distribution, got {prior!r}"
        )


def log_density(prior: Prior, z: Tensor) -> Tensor:
    """Return the log-density in nats, `(...)`, at `z` `(..., d)`."""
    if prior == "uniform":
        return z.new_zeros(z.shape[:-1])
    if prior == "gaussian":
        return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
    if isinstance(prior, GaussianMixture):
        return prior.log_prob(z)
    return _own(prior).log_prob(z)


def draw(
    prior: Prior, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Draw vectors, with the gradient of a prior's own parameters.

    Args:
        prior: the distribution.
        shape: `(..., d)`.
        like: has the dtype and the device.
        generator: a source of randomness; None takes torch's default.

    Raises:
        ValueError: for a generator with a distribution of the user's own; with gradients enabled,
            for a mixture whose weights learn, whose draws would lack a part of the gradient.
    """
    if isinstance(prior, GaussianMixture):
        if torch.is_grad_enabled() and prior.num_components > 1 and prior.log_weights.requires_grad:
            raise ValueError(
                "expected a prior whose draws have a gradient, got a mixture with weights that "
                "learn; to fix this: draw under torch.no_grad(), or freeze them by "
                "flow.prior.log_weights.requires_grad_(False)"
            )
        return prior.sample(shape[:-1], generator)
    if not isinstance(prior, str):
        if generator is not None:
            raise ValueError(
                "expected no generator with a prior of your own, got one; to fix this: use "
                "torch.manual_seed"
            )
        return _own(prior).rsample(torch.Size(shape[:-1]))
    make = torch.randn if prior == "gaussian" else torch.rand
    z = make(shape, generator=generator, dtype=like.dtype, device=like.device)
    if prior == "uniform":
        tiny = torch.finfo(z.dtype).eps
        z = z.clamp(tiny, 1 - tiny)
    return z


def squash(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logistic function of `z` `(..., d)` and the log-determinant `(...)`."""
    return _inside(z.sigmoid()), _log_slope(z)


def unsquash(u: Tensor) -> tuple[Tensor, Tensor]:
    """Undo `squash`; the log-determinant is that of the inverse map."""
    z = _inside(u).logit()
    return z, -_log_slope(z)


def _own(prior: Distribution | nn.Module) -> Distribution:
    return cast("Distribution", prior() if isinstance(prior, nn.Module) else prior)


def _log_slope(z: Tensor) -> Tensor:
    return (functional.logsigmoid(z) + functional.logsigmoid(-z)).sum(-1)


def _inside(u: Tensor) -> Tensor:
    """Keep `u` within the open unit interval: rounded to 0 or 1 it would have no inverse."""
    facts = torch.finfo(u.dtype)
    return u.clamp(facts.tiny, 1 - facts.eps / 2)
