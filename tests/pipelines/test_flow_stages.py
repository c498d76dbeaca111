"""The flow beats the Gaussian where it should, and refuses what it must."""

import math
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch

from enigma.jacobian_logdet import EnigmaFlow
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.artifacts import read_json, write_json
from pipelines.errors import GateError, UserError
from pipelines.flow_fit import Evaluation, fit
from pipelines.flow_states import StateFlow
from pipelines.gaussian import Gaussian
from pipelines.language_model import model_config
from pipelines.params import TrainFlowParams, load_params
from pipelines.sample_flow import check_round_trip
from pipelines.sample_flow import main as sample_flow
from pipelines.train_flow import check_evaluation
from pipelines.train_flow import main as train_flow
from pipelines.vocabulary import load_tokenizer
from pipelines.workspace import Workspace
from tests.support import TINY_RUN

SMALL_FLOW = {
    "train_flow.train_states": 640,
    "train_flow.validation_states": 64,
    "train_flow.num_blocks": 1,
    "train_flow.hidden_channels": 16,
    "train_flow.steps": 20,
    "train_flow.evaluate_every_steps": 10,
    "sample_flow.samples": 64,
}


def ring(count: int, seed: int) -> torch.Tensor:
    """Points near a circle in 4 dimensions: as far from Gaussian as can be."""
    generator = torch.Generator().manual_seed(seed)
    angle_N = 2 * math.pi * torch.rand(count, generator=generator)
    noise_N4 = 0.1 * torch.randn(count, 4, generator=generator)
    zero_N = torch.zeros_like(angle_N)
    return torch.stack((angle_N.cos(), angle_N.sin(), zero_N, zero_N), dim=1) + noise_N4


@pytest.fixture
def recipe(workspace: Path, set_params: Any) -> TrainFlowParams:
    set_params(
        {
            **SMALL_FLOW,
            "train_flow.num_blocks": 2,
            "train_flow.learning_rate": 5e-3,
            "train_flow.steps": 150,
        }
    )
    return load_params().profile.train_flow


def test_the_flow_beats_the_gaussian_on_a_ring(recipe: TrainFlowParams) -> None:
    train_ND, held_out_ND = ring(2000, seed=0), ring(500, seed=1)
    gaussian = Gaussian.fit(train_ND, relative_ridge=1e-6)
    torch.manual_seed(0)
    flow = EnigmaFlow.build(4, 2, coupling="affine", hidden_channels=32)
    rows: list[Evaluation] = []
    result = fit(
        flow,
        gaussian.whiten(train_ND).float(),
        gaussian.whiten(held_out_ND).float(),
        log_det=gaussian.log_det,
        params=recipe,
        on_evaluation=rows.append,
    )
    baseline = -float(gaussian.log_prob(held_out_ND).mean()) / 4
    assert rows[0].validation_nll_nats_per_dim == pytest.approx(baseline, abs=1e-3), (
        "before its first step the flow is the Gaussian"
    )
    assert result.best.validation_nll_nats_per_dim < baseline - 0.1
    state_flow = StateFlow(flow.eval(), gaussian)
    nll = -float(state_flow.log_prob(held_out_ND).mean()) / 4
    assert nll == pytest.approx(result.best.validation_nll_nats_per_dim, abs=1e-5)


def test_a_loss_that_is_not_finite_stops_the_fit(recipe: TrainFlowParams) -> None:
    broken_ND = torch.full((64, 4), math.nan)
    with pytest.raises(GateError, match="finite_flow_loss"):
        fit(
            EnigmaFlow.build(4, 1, coupling="affine", hidden_channels=8),
            broken_ND,
            ring(8, seed=0),
            log_det=0.0,
            params=recipe,
            on_evaluation=lambda _: None,
        )


def test_the_gaussian_is_scipys() -> None:
    states_ND = ring(300, seed=2)
    gaussian = Gaussian.fit(states_ND, relative_ridge=0.0)
    covariance = (gaussian.factor @ gaussian.factor.T).numpy()
    reference = scipy.stats.multivariate_normal(gaussian.mean.numpy(), covariance)
    assert gaussian.log_prob(states_ND).numpy() == pytest.approx(
        reference.logpdf(states_ND.double().numpy()), abs=1e-9
    )


def test_too_few_states_for_a_covariance_are_refused() -> None:
    with pytest.raises(UserError, match="at least 8 states"):
        Gaussian.fit(ring(7, seed=0), relative_ridge=0.0)


def test_an_evaluation_with_alarms_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "evaluation.json", {"alarms": [{"name": "not_causal"}]})
    with pytest.raises(GateError, match="not_causal"):
        check_evaluation(tmp_path / "evaluation.json")


@pytest.mark.parametrize("error", [1e-2, math.nan])
def test_a_bad_round_trip_is_refused(error: float) -> None:
    check_round_trip(1e-7, 1e-3)
    with pytest.raises(GateError, match="flow_round_trip"):
        check_round_trip(error, 1e-3)


@pytest.fixture
def evaluated_model(shards: Path, set_params: Any) -> Workspace:
    """An untrained language model with a clean evaluation."""
    set_params({**TINY_RUN, **SMALL_FLOW})
    workspace = Workspace("sanguo")
    torch.manual_seed(0)
    model = EnigmaForCausalLM(model_config(load_params().profile.model, shards))
    model.save_pretrained(workspace.language_model)
    load_tokenizer("bert-base-chinese").save_pretrained(workspace.language_model)
    facts = {"fingerprint": "f" * 64, "shards_root": "s" * 64}
    write_json(workspace.language_model / "training.json", facts)
    write_json(workspace.report("evaluate") / "evaluation.json", {"alarms": []})
    return workspace


def test_both_stages_write_their_outputs(evaluated_model: Workspace) -> None:
    train_flow()
    sample_flow()
    fitted = read_json(evaluated_model.report("train_flow") / "metrics.json")
    sampled = read_json(evaluated_model.report("sample_flow") / "metrics.json")
    assert fitted["best_step"] <= fitted["steps"] <= 20
    assert sampled["round_trip_error"] <= sampled["max_round_trip_error"]
    assert 0.0 <= sampled["decoded_jensen_shannon_bits"] <= 1.0
    for name in ("projection.png", "marginals.png"):
        assert (evaluated_model.report("sample_flow") / "figures" / name).is_file()


def test_a_broken_flow_fails_the_stage(
    evaluated_model: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_flow()
    inverse = EnigmaFlow.inverse

    def off_by_a_little(self: EnigmaFlow, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, log_det = inverse(self, z)
        return x + 0.1, log_det

    monkeypatch.setattr(EnigmaFlow, "inverse", off_by_a_little)
    with pytest.raises(GateError, match="flow_round_trip"):
        sample_flow()
    assert (evaluated_model.report("sample_flow") / "metrics.json").is_file()
