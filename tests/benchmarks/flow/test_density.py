"""The comparison of flows: densities that are known, and verdicts that can be negative."""

import math

import pytest
import torch

from benchmarks.flow.density_table import LEARNING_RATES, SEEDS, cells, detail, summary
from benchmarks.flow.peers import MODELS, OURS
from benchmarks.flow.sets import SETS, _log_mixture, load


def runs(test_nll_nats, *, round_trip_error=1e-6, entropy_nats=None):
    """All runs of all sets; the middle learning rate is the best."""
    return [
        {
            "set": name,
            "model": model,
            "lr": lr,
            "seed": seed,
            "validation_nll_nats": abs(lr - LEARNING_RATES[1]),
            "test_nll_nats": test_nll_nats[model] + 0.01 * seed,
            "entropy_nats": entropy_nats,
            "round_trip_error": round_trip_error,
            "log_det_error_nats": 1e-6,
        }
        for name in SETS
        for model in MODELS
        for lr in LEARNING_RATES
        for seed in (SEEDS if lr == LEARNING_RATES[1] else SEEDS[:1])
    ]


def timed(ours, peers):
    speeds = {model: ours if model == OURS else peers for model in MODELS}
    return {name: {"dim": 2, "log_prob_per_s": speeds, "sample_per_s": speeds} for name in SETS}


AHEAD = {model: 1.0 if model == OURS else 2.0 for model in MODELS}
BEHIND = {model: 2.0 if model == OURS else 1.0 for model in MODELS}


def verdicts(rows):
    return [entry["met"] for entry in rows if entry["met"] is not None]


def test_a_flow_that_is_ahead_everywhere_meets_every_target():
    assert all(verdicts(summary(runs(AHEAD, entropy_nats=0.97), timed(2.0, 1.0))))


@pytest.mark.parametrize(
    ("made", "speeds"),
    [
        (runs(BEHIND), timed(2.0, 1.0)),
        (runs(AHEAD, round_trip_error=1e-4), timed(2.0, 1.0)),
        (runs(AHEAD, round_trip_error=math.nan), timed(2.0, 1.0)),
        (runs(AHEAD, entropy_nats=0.9), timed(2.0, 1.0)),
        (runs(AHEAD), timed(1.0, 2.0)),
    ],
)
def test_each_target_can_be_missed(made, speeds):
    assert not all(verdicts(summary(made, speeds)))


def test_a_set_that_lacks_a_run_is_missing_and_decides_nothing():
    lacking = [r for r in runs(AHEAD) if (r["set"], r["model"], r["seed"]) != ("magic", OURS, 2)]
    rows = summary(lacking, {})
    assert [r["name"] for r in rows if r["name"].startswith("MISSING")] == ["MISSING: magic"]
    assert OURS not in cells(lacking, "magic")
    assert not any("magic" in entry["name"] for entry in detail(lacking, {}))


def test_a_mixture_of_one_is_a_normal_density():
    x_ND = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    expected = torch.distributions.Normal(0, 0.5).log_prob(x_ND).sum()
    assert _log_mixture(x_ND, torch.zeros(1, 2, dtype=torch.float64), 0.5).item() == pytest.approx(
        expected.item()
    )


def test_the_known_entropy_lies_between_noise_and_gaussian():
    made = load("moons", None, None)
    covariance = torch.cov(made.test.T)
    gaussian = 0.5 * torch.logdet(2 * math.pi * math.e * covariance).item()
    assert made.entropy_nats is not None
    # Two half circles of length 2 pi in all, and noise across them: thinner than the Gaussian.
    assert gaussian - 1.5 < made.entropy_nats < gaussian - 0.3


def test_the_states_need_a_language_model():
    with pytest.raises(ValueError, match="needs a language model"):
        load("states", None, None)
