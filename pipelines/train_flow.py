"""Stage `train_flow`: a normalizing flow over the language model's final hidden states.

    python -m pipelines.train_flow

States come from training sequences, early stopping looks at validation sequences. The
flow is fitted to states whitened by the full-covariance Gaussian that it has to beat,
so what it gains over that Gaussian is what is not Gaussian about them. The fit takes
about a minute and is not resumed: a killed one starts again.
"""

import csv
import io
import logging
import time
from pathlib import Path
from typing import Any

import torch

from enigma.jacobian_logdet import EnigmaFlow
from pipelines.artifacts import publish_directory, read_json, sha256_file, write_json, write_text
from pipelines.errors import GateError
from pipelines.flow_fit import Evaluation, Fit, fit
from pipelines.flow_states import StateFlow, noisy_states
from pipelines.gaussian import Gaussian
from pipelines.language_model import load_language_model
from pipelines.params import TrainFlowParams, load_params
from pipelines.stage import run_stage
from pipelines.tracking import RunLog
from pipelines.workspace import Workspace

# Keeps the covariance invertible in float64; far below the noise on the states.
RELATIVE_RIDGE = 1e-6

logger = logging.getLogger(__name__)


def main() -> None:
    """Fit and publish the flow of the profile in use."""
    params = load_params()
    workspace = Workspace(params.name)
    check_evaluation(workspace.report("evaluate") / "evaluation.json")
    train_flow(workspace, params.profile.train_flow)


def check_evaluation(path: Path) -> None:
    """Refuse a language model whose evaluation raised an alarm.

    Raises:
        GateError: `evaluation`.
    """
    alarms = read_json(path)["alarms"]
    if alarms:
        names = ", ".join(alarm["name"] for alarm in alarms)
        raise GateError(
            "evaluation", f"{path} holds alarms: {names}", "mend the language model first"
        )


def train_flow(workspace: Workspace, params: TrainFlowParams) -> None:
    """Collect states, fit, publish.

    Args:
        workspace: Where shards, model and outputs are.
        params: The recipe.
    """
    started_s = time.monotonic()
    model = load_language_model(workspace.language_model)
    states = {
        split: noisy_states(
            model,
            workspace.shards,
            split,
            states=count,
            states_per_sequence=params.states_per_sequence,
            noise_std=params.noise_std,
            seed=params.seed,
        ).states
        for split, count in (
            ("train", params.train_states),
            ("validation", params.validation_states),
        )
    }
    gaussian = Gaussian.fit(states["train"], relative_ridge=RELATIVE_RIDGE)
    torch.manual_seed(params.seed)
    flow = EnigmaFlow.build(
        states["train"].shape[1],
        params.num_blocks,
        coupling=params.coupling,
        hidden_channels=params.hidden_channels,
        seed=params.seed,
    )
    run_log = RunLog.open(
        run_name=f"train_flow/{workspace.profile}",
        params={"train_flow": params.model_dump(mode="json")},
        tags={"profile": workspace.profile},
    )
    result = fit(
        flow,
        gaussian.whiten(states["train"]).float(),
        gaussian.whiten(states["validation"]).float(),
        log_det=gaussian.log_det,
        params=params,
        on_evaluation=lambda row: run_log.log(row.step, _metrics(row)),
    )
    num_dims = states["train"].shape[1]
    baseline = -float(gaussian.log_prob(states["validation"]).mean()) / num_dims
    metrics = _summary(result, flow, baseline, states, params)
    metrics["elapsed_s"] = time.monotonic() - started_s
    _publish(workspace, StateFlow(flow, gaussian), result, metrics, run_log)
    logger.info(
        "held-out NLL: flow %.4f, Gaussian %.4f nats a dimension",
        result.best.validation_nll_nats_per_dim,
        baseline,
    )


def _summary(
    result: Fit,
    flow: EnigmaFlow,
    baseline: float,
    states: dict[str, torch.Tensor],
    params: TrainFlowParams,
) -> dict[str, float]:
    return {
        "validation_nll_nats_per_dim": result.best.validation_nll_nats_per_dim,
        "gaussian_validation_nll_nats_per_dim": baseline,
        "best_step": result.best.step,
        "steps": result.steps,
        "parameters": sum(parameter.numel() for parameter in flow.parameters()),
        "train_states": len(states["train"]),
        "validation_states": len(states["validation"]),
        "noise_std": params.noise_std,
    }


def _publish(
    workspace: Workspace,
    state_flow: StateFlow,
    result: Fit,
    metrics: dict[str, float],
    run_log: RunLog,
) -> None:
    training = read_json(workspace.language_model / "training.json")
    with publish_directory(workspace.flow) as building:
        state_flow.save(building)
        facts = {
            "lm_fingerprint": training["fingerprint"],
            "lm_weights_sha256": sha256_file(workspace.language_model / "model.safetensors"),
            "shards_root": training["shards_root"],
            "noise_std": metrics["noise_std"],
            "mlflow_run_id": run_log.run_id,
        }
        write_json(building / "flow_training.json", facts)
    report = workspace.report("train_flow")
    write_text(report / "history.csv", _csv(result))
    write_json(report / "metrics.json", metrics)
    run_log.artifact(report / "history.csv", "plots")
    run_log.finish("FINISHED")


def _metrics(row: Evaluation) -> dict[str, float]:
    return {
        "train_nll_nats_per_dim": row.train_nll_nats_per_dim,
        "validation_nll_nats_per_dim": row.validation_nll_nats_per_dim,
    }


def _csv(result: Fit) -> str:
    stream = io.StringIO()
    columns: list[Any] = ["step", *_metrics(result.best)]
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"step": row.step, **_metrics(row)} for row in result.history)
    return stream.getvalue()


if __name__ == "__main__":
    run_stage(main)
