"""The flow beats the Gaussian where it should, and refuses what it must."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file

from enigma.jacobian_logdet import EnigmaFlow
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.base.artifacts import read_json, sha256_file, write_json
from pipelines.base.errors import GateError, UserError
from pipelines.base.workspace import Workspace
from pipelines.data.text.vocabulary import load_tokenizer
from pipelines.flow.energy import energy_distance
from pipelines.flow.fit import Evaluation, Fit, fit, loss_nats
from pipelines.flow.gaussian import Gaussian
from pipelines.flow.states import StateFlow, with_noise
from pipelines.language_model.published import model_config
from pipelines.params import TrainFlowParams, load_params
from pipelines.sample_flow import check_round_trip
from pipelines.sample_flow import main as sample_flow
from pipelines.tracking.store import initialise_store, tracking_uri
from pipelines.train_flow import main as train_flow
from tests.support import REPOSITORY, TINY_RUN, change_params, make_tiny_shards

SMALL_FLOW = {
    "train_flow.train_states": 640,
    "train_flow.validation_states": 64,
    "train_flow.num_blocks": 1,
    "train_flow.hidden_channels": 16,
    "train_flow.steps": 20,
    "train_flow.batch_size": 64,
    "train_flow.evaluate_every_steps": 10,
    "sample_flow.samples": 64,
    "sample_flow.temperatures": [1.0],
    "sample_flow.passages": 4,
}
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


def test_a_flow_is_the_same_after_a_file(recipe: TrainFlowParams, tmp_path: Path) -> None:
    before, _ = fit_ring(recipe.model_copy(update={"steps": 5}))
    before.save(tmp_path / "flow")
    after = StateFlow.load(tmp_path / "flow", torch.device("cpu"))
    states_ND = ring(50, seed=3)
    assert torch.equal(after.log_prob(states_ND), before.log_prob(states_ND))
    assert torch.equal(after.sample(9, seed=4), before.sample(9, seed=4))
    assert not torch.equal(after.sample(9, seed=5), before.sample(9, seed=4))
    assert after.round_trip_error(states_ND) < 1e-5
    (tmp_path / "flow" / "whitening.safetensors").unlink()
    with pytest.raises(UserError, match="expected a flow"):
        StateFlow.load(tmp_path / "flow", torch.device("cpu"))


def test_noise_is_a_function_of_seed_and_split() -> None:
    zeros_ND = torch.zeros(1000, 4)
    first = with_noise(zeros_ND, noise_std=0.3, split="test", seed=0)
    assert torch.equal(first, with_noise(zeros_ND, noise_std=0.3, split="test", seed=0))
    assert first.std() == pytest.approx(0.3, rel=0.05)
    for split, seed in (("validation", 0), ("test", 1)):
        other = with_noise(zeros_ND, noise_std=0.3, split=split, seed=seed)
        assert abs(float((first * other).mean())) < 0.01


@pytest.mark.parametrize("error", [1e-2, math.nan])
def test_a_bad_round_trip_is_refused(error: float) -> None:
    check_round_trip(1e-7, 1e-3)
    with pytest.raises(GateError, match="flow_round_trip"):
        check_round_trip(error, 1e-3)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with an untrained model, a clean evaluation and a flow over it."""
    directory = tmp_path_factory.mktemp("template") / "workspace"
    directory.mkdir()
    (directory / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    change_params(directory / "params.yaml", {**TINY_RUN, **SMALL_FLOW})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{directory}/mlflow.db")
        shards = make_tiny_shards()
        workspace = Workspace("sanguo")
        torch.manual_seed(0)
        model = EnigmaForCausalLM(model_config(load_params().profile.model, shards))
        model.save_pretrained(workspace.language_model)
        load_tokenizer("bert-base-chinese").save_pretrained(workspace.language_model)
        facts = {"fingerprint": "f" * 64, "shards_root": "s" * 64}
        write_json(workspace.language_model / "training.json", facts)
        weights = sha256_file(workspace.language_model / "model.safetensors")
        evaluation = {"alarms": [], "weights_sha256": weights}
        write_json(workspace.report("evaluate") / "evaluation.json", evaluation)
        train_flow()
    return directory


@pytest.fixture
def fitted(template: Path, workspace: Path) -> Workspace:
    """A copy of the template to work in, its MLflow store included."""
    shutil.copytree(template, workspace, dirs_exist_ok=True)
    return Workspace("sanguo")


@pytest.fixture
def evaluated(fitted: Workspace) -> Workspace:
    """The same before the flow was fitted."""
    shutil.rmtree(fitted.flow)
    shutil.rmtree(fitted.report("train_flow"))
    shutil.rmtree(fitted.runs)
    return fitted


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_both_stages_write_their_outputs(fitted: Workspace) -> None:
    sample_flow()
    trained = read_json(fitted.report("train_flow") / "metrics.json")
    sampled = read_json(fitted.report("sample_flow") / "metrics.json")
    assert trained["best_step"] <= trained["steps"] <= 20
    assert sampled["round_trip_error"] <= sampled["max_round_trip_error"]
    assert 0.0 <= sampled["decoded_jensen_shannon_bits"] <= 1.0
    pictures = {
        fitted.report("train_flow") / "figures": {"nll.png"},
        fitted.report("sample_flow") / "figures": {
            "projection.png",
            "marginals.png",
            "walk.png",
            "decoded.md",
            "documents.md",
            "temperatures.md",
        },
    }
    for directory, names in pictures.items():
        assert {path.name for path in directory.iterdir()} == names
    run_id = read_json(fitted.flow / "flow_training.json")["mlflow_run_id"]
    client = MlflowClient(tracking_uri())
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_nll_nats_per_dim"] == sampled["test_nll_nats_per_dim"]
    steps = [m.step for m in client.get_metric_history(run_id, "validation_nll_nats_per_dim")]
    assert steps == [0, 10, 20]
    history = client.get_metric_history(run_id, "documents/validation_nll_nats_per_dim")
    assert [m.step for m in history][:2] == [0, 10]
    assert (
        trained["documents_validation_nll_nats_per_dim"]
        <= trained["documents_gaussian_validation_nll_nats_per_dim"]
    )


def test_the_same_inputs_give_the_same_bytes(fitted: Workspace, set_params: Any) -> None:
    first = contents(fitted.flow)
    train_flow()
    assert contents(fitted.flow) == first
    set_params({"train_flow.seed": 1})
    train_flow()
    again = contents(fitted.flow)
    assert again["flow.safetensors"] != first["flow.safetensors"]
    assert again["whitening.safetensors"] != first["whitening.safetensors"]
    assert again["documents/flow.safetensors"] != first["documents/flow.safetensors"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"alarms": [{"name": "not_causal", "message": "it is not"}]}, "holds alarms: not_causal"),
        ({"weights_sha256": "0" * 64}, "is of the weights 000000000000"),
    ],
)
def test_an_evaluation_with_alarms_or_of_another_model_is_refused(
    evaluated: Workspace, change: dict[str, Any], problem: str
) -> None:
    path = evaluated.report("evaluate") / "evaluation.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(GateError, match=problem):
        train_flow()
    assert not evaluated.flow.exists()
    assert not evaluated.report("train_flow").exists()


def test_a_loss_that_is_not_finite_publishes_nothing(evaluated: Workspace, set_params: Any) -> None:
    set_params({"train_flow.learning_rate": 1e30})
    with pytest.raises(GateError, match="finite_flow_loss"):
        train_flow()
    assert not evaluated.flow.exists()
    newest, _ = MlflowClient(tracking_uri()).search_runs([initialise_store()])
    assert newest.info.status == "FAILED"


def test_too_few_states_are_refused(evaluated: Workspace, set_params: Any) -> None:
    set_params({"train_flow.train_states": 16})
    with pytest.raises(UserError, match="expected at least 32 states, got 15"):
        train_flow()
    assert not evaluated.flow.exists()


def plant(flow: Path, name: str, factor: float) -> None:
    """Multiply one tensor of a published flow."""
    weights = load_file(flow / "flow.safetensors")
    weights[name] = weights[name] * factor
    save_file(weights, flow / "flow.safetensors")


def test_a_flow_that_does_not_invert_fails_the_stage(fitted: Workspace) -> None:
    # So far from orthogonal that float32 cannot come back.
    plant(fitted.flow, "enigma.rotors.layers.0.packed", 800.0)
    with pytest.raises(GateError, match="flow_round_trip"):
        sample_flow()
    report = read_json(fitted.report("sample_flow") / "metrics.json")
    error = report["round_trip_error"]
    assert error is None or error > report["max_round_trip_error"], "None stands for NaN"


def test_a_flow_that_gives_no_numbers_fails_the_stage(fitted: Workspace) -> None:
    plant(fitted.flow, "scale", math.nan)
    with pytest.raises(GateError, match="64 of 64 samples"):
        sample_flow()
    assert not fitted.report("sample_flow").exists()


def test_a_flow_that_loses_is_reported_and_does_not_fail(
    fitted: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    plant(fitted.flow, "scale", 3.0)
    with caplog.at_level("INFO"):
        sample_flow()
    assert "LOSES TO the Gaussian" in caplog.text
    report = read_json(fitted.report("sample_flow") / "metrics.json")
    assert report["test_nll_nats_per_dim"] > report["gaussian_test_nll_nats_per_dim"]
    assert report["gain_over_gaussian_nats_per_dim"] < 0


def test_a_flow_of_another_language_model_is_refused(fitted: Workspace) -> None:
    plant_weights = fitted.language_model / "model.safetensors"
    weights = load_file(plant_weights)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, plant_weights)
    with pytest.raises(UserError, match="run `dvc repro train_flow`"):
        sample_flow()
    assert not fitted.report("sample_flow").exists()
