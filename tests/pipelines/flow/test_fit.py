"""A fit starts at the Gaussian, beats it, and ends with its best weights."""

import math

import pytest
import torch

from enigma.jacobian_logdet import EnigmaFlow
from pipelines.flow.energy import energy_distance
from pipelines.flow.fit import Evaluation, Fit, fit, fit_state_flow, loss_nats
from pipelines.flow.gaussian import Gaussian
from pipelines.flow.hidden_states import with_noise
from pipelines.flow.state_flow import StateFlow
from pipelines.params import MixtureParams, TrainFlowParams, load_params
from tests.support import REPOSITORY

NOISE_STD = 0.1


def ring(count: int, seed: int) -> torch.Tensor:
    """Points on a circle in 4 dimensions: a surface, and as far from Gaussian as can be."""
    generator = torch.Generator().manual_seed(seed)
    angle_N = 2 * math.pi * torch.rand(count, generator=generator)
    zero_N = torch.zeros_like(angle_N)
    return torch.stack((angle_N.cos(), angle_N.sin(), zero_N, zero_N), dim=1)


@pytest.fixture(scope="module")
def recipe() -> TrainFlowParams:
    changes = {
        "noise_std": NOISE_STD,
        "steps": 150,
        "batch_size": 64,
        "learning_rate": 5e-3,
        "evaluate_every_steps": 10,
        "early_stopping_patience": 4,
    }
    return load_params(REPOSITORY / "params.yaml").profile.train_flow.model_copy(update=changes)


def fit_ring(recipe: TrainFlowParams) -> tuple[StateFlow, Fit]:
    gaussian = Gaussian.fit(ring(2000, seed=0), noise_std=NOISE_STD)
    torch.manual_seed(0)
    flow = EnigmaFlow.build(4, 2, coupling="affine", hidden_channels=32)
    held_out_ND = with_noise(ring(500, seed=1), noise_std=NOISE_STD, split="validation", seed=0)
    rows: list[Evaluation] = []
    result = fit(
        flow, gaussian, ring(2000, seed=0), held_out_ND, params=recipe, on_evaluation=rows.append
    )
    assert rows == result.history
    return StateFlow(flow.eval(), gaussian), result


@pytest.fixture(scope="module")
def ring_fit(recipe: TrainFlowParams) -> tuple[StateFlow, Fit]:
    return fit_ring(recipe)


def test_the_flow_starts_at_the_gaussian_and_beats_it(ring_fit: tuple[StateFlow, Fit]) -> None:
    state_flow, result = ring_fit
    held_out_ND = with_noise(ring(500, seed=1), noise_std=NOISE_STD, split="validation", seed=0)
    start = -float(state_flow.gaussian.log_prob(held_out_ND).mean()) / 4
    assert result.history[0].validation_nll_nats_per_dim == pytest.approx(start, abs=1e-5)
    test_ND = with_noise(ring(2000, seed=2), noise_std=NOISE_STD, split="test", seed=0)
    baseline = -float(state_flow.gaussian.log_prob(test_ND).mean()) / 4
    # The entropy of a noisy circle, by hand: 3 directions of noise and one of length 2 pi.
    noise_entropy = 0.5 * math.log(2 * math.pi * math.e * NOISE_STD**2)
    entropy = (3 * noise_entropy + math.log(2 * math.pi)) / 4
    nll = -float(state_flow.log_prob(test_ND).mean()) / 4
    assert entropy < nll < baseline - 0.1


def test_a_fit_from_clusters_starts_at_the_mixture_and_ends_no_worse(
    recipe: TrainFlowParams,
) -> None:
    """Rings far apart: their mixture is far better than their Gaussian before any step."""
    apart_D = torch.tensor([20.0, 0.0, 0.0, 0.0])
    train_ND, held_out_ND = (
        torch.cat((ring(count, seed), ring(count, seed + 1) + apart_D))
        for count, seed in ((1000, 0), (200, 2))
    )
    held_out_ND = with_noise(held_out_ND, noise_std=NOISE_STD, split="validation", seed=0)
    params = recipe.model_copy(
        update={
            "mixture": MixtureParams(
                components=20, pseudo_counts=4.0, steps=20, learning_rate=1e-3
            ),
            "hidden_channels": 16,
        }
    )
    state_flow, result = fit_state_flow(
        train_ND,
        held_out_ND,
        params=params,
        device=torch.device("cpu"),
        on_evaluation=lambda _: None,
    )
    gaussian = -float(state_flow.gaussian.log_prob(held_out_ND).mean()) / 4
    start = result.history[0]
    assert (start.step, result.history[-1].step) == (0, 20)
    assert start.validation_nll_nats_per_dim < gaussian - 0.3
    assert result.best.validation_loss_nats_per_dim <= start.validation_loss_nats_per_dim
    nll = -float(state_flow.log_prob(held_out_ND).mean()) / 4
    assert nll == pytest.approx(result.best.validation_nll_nats_per_dim, abs=1e-5)
    distance = energy_distance(
        state_flow.gaussian.whiten(held_out_ND),
        state_flow.gaussian.whiten(state_flow.sample(400, seed=params.seed)),
    ).item()
    assert result.best.validation_loss_nats_per_dim == pytest.approx(
        nll + params.energy_weight * distance, abs=1e-5
    )


def test_a_fit_stops_at_what_samples_and_likelihood_say_together() -> None:
    rows = [Evaluation(0, 1.0, 1.0, 1.2), Evaluation(1, 0.9, 0.9, 1.3), Evaluation(2, 1, 1, 1.1)]
    assert Fit(rows).best is rows[2]
    assert Fit(rows[:2]).best is rows[0], "likelihood alone would have taken the second"


def test_samples_lie_where_the_states_lie(ring_fit: tuple[StateFlow, Fit]) -> None:
    sampled_ND = ring_fit[0].sample(1000, seed=0)
    radius_N = sampled_ND[:, :2].norm(dim=1)
    assert radius_N.median() == pytest.approx(1.0, abs=0.15)
    assert sampled_ND[:, 2:].std() == pytest.approx(NOISE_STD, abs=0.05)


def test_the_distance_of_samples_is_part_of_the_loss() -> None:
    flow = EnigmaFlow.build(4, 1, coupling="affine", hidden_channels=8)
    batch_BD = 3 + torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    losses = [
        loss_nats(flow, batch_BD, torch.Generator().manual_seed(1), weight) for weight in (0.0, 0.5)
    ]
    half_BD = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    distance = energy_distance(batch_BD[:32], flow.inverse(half_BD)[0])
    assert losses[1].item() == pytest.approx(losses[0].item() + 0.5 * 4 * distance.item())
    bias = flow.enigma.blocks[0].f.network.out.bias
    [gradient] = torch.autograd.grad(losses[1] - losses[0], bias)
    assert gradient.abs().max() > 0.1, "the step descends it too"


def test_the_best_weights_are_kept_and_patience_ends_the_fit(recipe: TrainFlowParams) -> None:
    gaussian = Gaussian.fit(ring(8, seed=0), noise_std=NOISE_STD)
    flow = EnigmaFlow.build(4, 1, coupling="affine", hidden_channels=64)
    held_out_ND = with_noise(ring(500, seed=1), noise_std=NOISE_STD, split="validation", seed=0)
    overfit = recipe.model_copy(update={"steps": 400, "learning_rate": 2e-2})
    result = fit(
        flow, gaussian, ring(8, seed=0), held_out_ND, params=overfit, on_evaluation=lambda _: None
    )
    assert result.evaluations_since_best == recipe.early_stopping_patience
    assert result.history[-1].step < 400
    nll = -float(StateFlow(flow.eval(), gaussian).log_prob(held_out_ND).mean()) / 4
    assert nll == pytest.approx(result.best.validation_nll_nats_per_dim, abs=1e-5)
