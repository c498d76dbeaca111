"""Stage `train_flow`: fit normalizing flows to the language model's final hidden states.

    python -m pipelines.train_flow

States are read from training sequences; early stopping uses validation sequences. The flow is
fitted to states whitened by the full-covariance Gaussian that it has to beat, from a mixture of
Gaussians that has their clusters (`pipelines/flow/mixture.py`). A second flow, over the mean states
of passages, scores documents (`pipelines/flow/documents/document_flow.py`). A fit takes about a
minute and is not resumed: if it is killed, it starts again in the same MLflow run.
"""

import hashlib
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.base.artifacts import (
    publish_directory,
    read_json,
    sha256_file,
    verify_manifest,
    write_csv,
    write_json,
)
from pipelines.base.code_hash import code_hash
from pipelines.base.errors import GateError
from pipelines.base.run_stage import run_stage
from pipelines.base.workspace import Workspace
from pipelines.data.shards import ShardReader
from pipelines.flow.documents.document_flow import DIRECTORY, fit_document_flow
from pipelines.flow.figures import draw_history
from pipelines.flow.fit import Evaluation, Fit, fit_state_flow
from pipelines.flow.hidden_states import collect_states, with_noise
from pipelines.flow.state_flow import StateFlow
from pipelines.language_model.published import load_language_model
from pipelines.params import TrainFlowParams, load_params
from pipelines.runs.directory import FINGERPRINT_DIGITS, RunDirectory
from pipelines.runs.hardware import refuse_idle_gpus
from pipelines.runs.training_slot import training_slot
from pipelines.tracking.run_log import RunLog

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM


logger = logging.getLogger(__name__)


def main() -> None:
    """Fit and publish the flow of the profile in use."""
    refuse_idle_gpus()
    params = load_params()
    with training_slot(f"train_flow of {params.name}"):
        train_flow(Workspace(params.name), params.profile.train_flow)


def check_evaluation(path: Path, weights_sha256: str) -> None:
    """Refuse a language model whose evaluation raised an alarm or is of other weights.

    Raises:
        GateError: `evaluation`.
    """
    evaluation = read_json(path)
    if evaluation["alarms"]:
        names = ", ".join(alarm["name"] for alarm in evaluation["alarms"])
        raise GateError(
            "evaluation", f"{path}: expected no alarms, got {names}", "fix the language model first"
        )
    if evaluation["weights_sha256"] != weights_sha256:
        raise GateError(
            "evaluation",
            f"{path}: expected the weights {weights_sha256[:12]}... of the language model, "
            f"got {evaluation['weights_sha256'][:12]}...",
            "run `dvc repro evaluate` on this model",
        )


def train_flow(workspace: Workspace, params: TrainFlowParams) -> None:
    """Collect states, fit, publish.

    Args:
        workspace: Where shards, model and outputs are.
        params: The recipe.

    Raises:
        GateError: `evaluation`, `finite_flow_loss`; nothing is published.
        UserError: If the shards are not as they were made, or there are too few states for a
            covariance.
    """
    started_s = time.monotonic()
    facts = lineage(workspace)
    check_evaluation(workspace.report("evaluate") / "evaluation.json", facts["lm_weights_sha256"])
    run, run_log = _open_run(workspace.profile, workspace.runs, facts, params)
    status = "FAILED"
    try:
        model = load_language_model(workspace.language_model)
        state_flow, result, metrics = fit_states(model, workspace, params, run_log)
        document_flow, course = fit_document_flow(
            model,
            workspace.shards,
            params,
            lambda row: run_log.log(
                row.step, {f"documents/{name}": loss for name, loss in _losses(row).items()}
            ),
        )
        metrics |= {f"documents_{name}": value for name, value in _gain(course).items()}
        metrics["elapsed_s"] = time.monotonic() - started_s
        with publish_directory(workspace.flow) as building:
            state_flow.save(building)
            document_flow.save(building / DIRECTORY)
            write_json(
                building / "flow_training.json",
                {**facts, "noise_std": params.noise_std, "mlflow_run_id": run.mlflow_run_id},
            )
        _report(workspace.report("train_flow"), result, metrics, run_log)
        status = "FINISHED"
    finally:
        run_log.finish(status)
    logger.info(
        "held-out negative log-likelihood: flow %.4f, Gaussian %.4f nats per dimension",
        metrics["validation_nll_nats_per_dim"],
        metrics["gaussian_validation_nll_nats_per_dim"],
    )


def lineage(workspace: Workspace) -> dict[str, str]:
    """Return which language model and which data the flow is fitted to.

    Raises:
        UserError: If the shards are not as they were made.
    """
    training = read_json(workspace.language_model / "training.json")
    return {
        "lm_fingerprint": training["fingerprint"],
        "lm_weights_sha256": sha256_file(workspace.language_model / "model.safetensors"),
        "shards_root": verify_manifest(workspace.shards)["root"],
    }


def fit_states(
    model: "EnigmaForCausalLM", workspace: Workspace, params: TrainFlowParams, run_log: RunLog
) -> tuple[StateFlow, Fit, dict[str, float]]:
    """Collect states and fit the flow to them; nothing is written to disk.

    Args:
        model: The language model in evaluation mode.
        workspace: Where the shards are.
        params: The recipe.
        run_log: Records each evaluation.

    Returns:
        The flow, the course of the fit, and the metrics.
    """
    wanted = {"train": params.train_states, "validation": params.validation_states}
    clean = {
        split: collect_states(
            model,
            ShardReader(workspace.shards, split),
            states=count,
            states_per_sequence=params.states_per_sequence,
            seed=params.seed,
        ).states
        for split, count in wanted.items()
    }
    held_out_ND = with_noise(
        clean["validation"], noise_std=params.noise_std, split="validation", seed=params.seed
    )
    state_flow, result = fit_state_flow(
        clean["train"],
        held_out_ND,
        params=params,
        device=model.device,
        on_evaluation=lambda row: run_log.log(row.step, _losses(row)),
    )
    gaussian_log_prob_N = state_flow.gaussian.log_prob(held_out_ND)
    metrics = {
        "validation_nll_nats_per_dim": result.best.validation_nll_nats_per_dim,
        "gaussian_validation_nll_nats_per_dim": -float(gaussian_log_prob_N.mean())
        / held_out_ND.shape[1],
        "untrained_validation_nll_nats_per_dim": result.history[0].validation_nll_nats_per_dim,
        "best_step": result.best.step,
        "steps": result.history[-1].step,
        "parameters": sum(parameter.numel() for parameter in state_flow.flow.parameters()),
        "train_states": len(clean["train"]),
        "validation_states": len(held_out_ND),
        "noise_std": params.noise_std,
    }
    return state_flow, result, metrics


def _open_run(
    profile: str, runs: Path, facts: dict[str, str], params: TrainFlowParams
) -> tuple[RunDirectory, RunLog]:
    """Open the MLflow run of these inputs; the same inputs open the same run again.

    A new run for every repetition would change `flow_training.json`, and with it every
    later stage and registered version, although nothing else differs.
    """
    decisive = {
        **facts,
        "train_flow": params.model_dump(mode="json"),
        "code": code_hash("train_flow"),
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    fingerprint = digest[:FINGERPRINT_DIGITS]
    run = RunDirectory(runs / f"flow-{fingerprint}")
    run.metrics.rewrite([])
    run_log = RunLog.open(
        run_name=f"train_flow/{profile} {fingerprint}",
        params={"train_flow": params.model_dump(mode="json")},
        tags={"profile": profile, **facts},
        metrics=run.metrics,
    )
    return run, run_log


def _report(directory: Path, result: Fit, metrics: dict[str, float], run_log: RunLog) -> None:
    columns = list(asdict(result.best))
    write_csv(directory / "history.csv", columns, map(asdict, result.history))
    with publish_directory(directory / "figures") as figures:
        draw_history(result.history, metrics["gaussian_validation_nll_nats_per_dim"], figures)
    write_json(directory / "metrics.json", metrics)
    run_log.artifact(directory / "history.csv", "plots")
    run_log.artifact(directory / "figures", "plots")


def _gain(course: Fit) -> dict[str, float]:
    """Return the gain of the flow over passages; before its first step it is its Gaussian."""
    best = course.best
    return {
        "validation_nll_nats_per_dim": best.validation_nll_nats_per_dim,
        "gaussian_validation_nll_nats_per_dim": course.history[0].validation_nll_nats_per_dim,
        "best_step": best.step,
    }


def _losses(row: Evaluation) -> dict[str, float]:
    values = asdict(row)
    del values["step"]
    return values


if __name__ == "__main__":
    run_stage(main)
