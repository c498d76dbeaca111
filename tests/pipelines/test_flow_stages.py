"""Both flow stages write their outputs, and refuse what they must."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file

from pipelines.base.artifacts import read_json, read_manifest, sha256_file, write_json
from pipelines.base.errors import GateError, UserError
from pipelines.base.workspace import Workspace
from pipelines.count_ngrams import main as count_ngrams
from pipelines.data.text.vocabulary import load_tokenizer
from pipelines.language_model.published import new_language_model
from pipelines.params import load_params
from pipelines.sample_flow import PARENT_RUN, check_round_trip
from pipelines.sample_flow import main as sample_flow
from pipelines.tracking.store import initialise_store, tracking_uri
from pipelines.train_flow import main as train_flow
from tests.support import LENGTH, REPOSITORY, TINY_NGRAMS, TINY_RUN, change_params, make_tiny_shards

SMALL_FLOW = {
    "train_flow.train_states": 640,
    "train_flow.validation_states": 64,
    "train_flow.mixture.components": 4,
    "train_flow.mixture.steps": 20,
    "train_flow.mixture.learning_rate": 1.0e-3,
    "train_flow.num_blocks": 1,
    "train_flow.hidden_channels": 16,
    "train_flow.steps": 20,
    "train_flow.batch_size": 64,
    "train_flow.evaluate_every_steps": 10,
    "sample_flow.samples": 256,
    "sample_flow.temperatures": [1.0],
    "sample_flow.passages": 4,
}


@pytest.mark.parametrize("error", [1e-2, math.nan])
def test_a_bad_round_trip_is_refused(error: float) -> None:
    check_round_trip(1e-7, 1e-3)
    with pytest.raises(GateError, match="flow_round_trip"):
        check_round_trip(error, 1e-3)


@pytest.fixture(scope="module")
def template(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with an untrained model, a clean evaluation and a flow over it."""
    directory = tmp_path_factory.mktemp("template") / "workspace"
    directory.mkdir()
    shutil.copy(migrated_store, directory / "mlflow.db")
    (directory / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    change_params(
        directory / "params.yaml", {**TINY_RUN, **SMALL_FLOW, "count_ngrams": TINY_NGRAMS}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{directory}/mlflow.db")
        shards = make_tiny_shards()
        workspace = Workspace("sanguo")
        torch.manual_seed(0)
        count_ngrams()
        model = new_language_model(load_params().profile.model, shards, workspace.ngrams)
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


def samplings(fit_id: str) -> list[Run]:
    """The runs below that of a fit, the newest first."""
    client = MlflowClient(tracking_uri())
    experiment = client.get_run(fit_id).info.experiment_id
    return list(client.search_runs([experiment], f"tags.`{PARENT_RUN}` = '{fit_id}'"))


def test_both_stages_write_their_outputs(fitted: Workspace, set_params: Any) -> None:
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
    [below] = samplings(run_id)
    assert below.info.status == "FINISHED"
    assert below.data.metrics["two_sample_auc"] == sampled["two_sample_auc"]
    steps = [m.step for m in client.get_metric_history(run_id, "loss/validation_nll_nats_per_dim")]
    assert steps == [0, 10, 20]
    history = client.get_metric_history(run_id, "loss/documents/validation_nll_nats_per_dim")
    assert [m.step for m in history][:2] == [0, 10]
    assert (
        trained["documents_validation_nll_nats_per_dim"]
        <= trained["documents_gaussian_validation_nll_nats_per_dim"]
    )
    set_params({"sample_flow.seed": 1})
    sample_flow()
    again = read_json(fitted.report("sample_flow") / "metrics.json")
    newest, older = samplings(run_id)
    assert newest.data.metrics["two_sample_auc"] == again["two_sample_auc"]
    assert older.data.metrics["two_sample_auc"] == sampled["two_sample_auc"]
    assert again["two_sample_auc"] != sampled["two_sample_auc"]


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
        (
            {"alarms": [{"name": "not_causal", "message": "it is not"}]},
            "expected no alarms, got not_causal",
        ),
        ({"weights_sha256": "0" * 64}, "got 000000000000"),
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


@pytest.mark.parametrize(
    ("stage", "split"), [(train_flow, "train"), (train_flow, "validation"), (sample_flow, "test")]
)
def test_shards_that_are_not_as_they_were_made_are_refused(
    evaluated: Workspace, template: Path, stage: Callable[[], None], split: str
) -> None:
    if stage is sample_flow:
        shutil.copytree(template / evaluated.flow, evaluated.flow)
    shard = evaluated.shards / f"{split}-00000.bin"
    tokens = shard.read_bytes()
    shard.write_bytes(tokens[LENGTH:] + tokens[:LENGTH])
    with pytest.raises(UserError, match=rf"{split}-00000\.bin: expected sha256") as refusal:
        stage()
    assert f"`dvc checkout --force {evaluated.shards}`" in refusal.value.fix
    assert not evaluated.runs.exists()
    assert not evaluated.report("train_flow").exists()
    assert not evaluated.report("sample_flow").exists()
    shard.write_bytes(tokens)
    stage()


def test_a_flow_names_the_shards_that_it_was_fitted_to(fitted: Workspace) -> None:
    facts = read_json(fitted.flow / "flow_training.json")
    assert facts["shards_root"] == read_manifest(fitted.shards)["root"]


def test_a_loss_that_is_not_finite_publishes_nothing(evaluated: Workspace, set_params: Any) -> None:
    set_params({"train_flow.mixture.learning_rate": 1e30})
    with pytest.raises(GateError, match="finite_flow_loss"):
        train_flow()
    assert not evaluated.flow.exists()
    newest, _ = MlflowClient(tracking_uri()).search_runs([initialise_store()])
    assert newest.info.status == "FAILED"


def test_a_held_out_loss_that_is_not_finite_publishes_nothing(
    evaluated: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least of some losses that are no numbers would be the flow before the first step."""
    monkeypatch.setattr("pipelines.flow.fit.energy_distance", lambda *_: torch.tensor(math.nan))
    with pytest.raises(GateError, match=r"finite_flow_loss.*a held-out loss at step 0"):
        train_flow()
    assert not evaluated.flow.exists()


@pytest.mark.parametrize(
    ("changed", "got"),
    [
        ({"sample_flow.samples": 28}, "7 of 1"),
        ({"sample_flow.samples": 64}, "15 of 1"),
    ],
)
def test_samples_without_two_halves_of_real_states_are_refused(
    fitted: Workspace, set_params: Any, changed: dict[str, int], got: str
) -> None:
    set_params(changed)
    with pytest.raises(UserError, match=f"at least 8 test states of 2 sequences, got {got}") as no:
        sample_flow()
    assert "raise sample_flow.samples (4 for each state)" in no.value.fix
    assert not fitted.report("sample_flow").exists()
    # What the message says to do:
    set_params({"sample_flow.samples": 128, "sample_flow.states_per_sequence": 4})
    sample_flow()


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
    # So far from orthogonal that float32 cannot invert it.
    plant(fitted.flow, "enigma.rotors.layers.0.packed", 800.0)
    with pytest.raises(GateError, match="flow_round_trip"):
        sample_flow()
    report = read_json(fitted.report("sample_flow") / "metrics.json")
    error = report["round_trip_error"]
    assert error is None or error > report["max_round_trip_error"], "None stands for NaN"


def test_a_flow_that_gives_no_numbers_fails_the_stage(fitted: Workspace) -> None:
    plant(fitted.flow, "scale", math.nan)
    with pytest.raises(GateError, match="NaN or infinity in 256 of 256"):
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
