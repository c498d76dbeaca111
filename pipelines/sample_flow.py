"""Stage `sample_flow`: sample the flow, and decode the samples through the language model's head.

    python -m pipelines.sample_flow

Reports test negative log-likelihood against the full-covariance Gaussian, the round-trip error,
and how far samples are from real states: moments, energy distance, a two-sample classifier,
decoded tokens, temperatures, documents, figures. A round-trip error out of bounds fails the stage;
losing to the Gaussian does not (promotion refuses it).

Shape legend: N states, M samples, D dimensions.
"""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.base.artifacts import (
    publish_directory,
    read_json,
    sha256_file,
    verify_manifest,
    write_json,
    write_text,
)
from pipelines.base.errors import GateError
from pipelines.base.run_stage import run_stage
from pipelines.base.workspace import Workspace
from pipelines.data.shards import ShardReader
from pipelines.flow.clouds import Cloud, CloudReader
from pipelines.flow.decoding import draw_tokens, token_table
from pipelines.flow.documents.document_flow import DIRECTORY, DocumentFlow
from pipelines.flow.documents.document_report import DocumentReport, describe_documents
from pipelines.flow.evaluation_set import EvaluationSet, read_evaluation_set
from pipelines.flow.figures import draw_samples, draw_walk
from pipelines.flow.quality import distances, divergences, moments, temperature_table
from pipelines.flow.state_flow import StateFlow, check_language_model
from pipelines.language_model.losses import LOSSES_FILE
from pipelines.language_model.published import load_language_model
from pipelines.params import SampleFlowParams, load_params
from pipelines.runs.hardware import refuse_idle_gpus
from pipelines.tracking.run_log import RunLog

logger = logging.getLogger(__name__)

# MLflow's name for the tag by which its UI shows one run below another.
PARENT_RUN = "mlflow.parentRunId"

LOGGED_METRICS = (
    "test_nll_nats_per_dim",
    "gaussian_test_nll_nats_per_dim",
    "round_trip_error",
    "energy_distance",
    "two_sample_auc",
    "true_jensen_shannon_bits",
)


def main() -> None:
    """Sample the flow of the profile in use; a bad round trip ends in exit code 1."""
    refuse_idle_gpus()
    params = load_params()
    sample_flow(Workspace(params.name), params.profile.sample_flow)


def sample_flow(workspace: Workspace, params: SampleFlowParams) -> None:
    """Sample, compare with real states, report.

    Args:
        workspace: Where shards, models and outputs are.
        params: Sizes and bounds.

    Raises:
        GateError: `flow_samples`; `flow_round_trip`, after the report is written.
        UserError: If the flow belongs to another language model, a file is missing, or the shards
            are not as they were made.
    """
    from transformers import AutoTokenizer

    verify_manifest(workspace.shards)
    facts = read_json(workspace.flow / "flow_training.json")
    check_language_model(workspace.language_model, facts["lm_weights_sha256"])
    model = load_language_model(workspace.language_model)
    tokenizer = AutoTokenizer.from_pretrained(workspace.language_model)
    state_flow = StateFlow.load(workspace.flow, model.device)
    document_flow = DocumentFlow.load(workspace.flow / DIRECTORY, model.device)
    test = read_evaluation_set(
        model, ShardReader(workspace.shards, "test"), params, noise_std=facts["noise_std"]
    )

    reader = CloudReader(model, state_flow)
    clouds = {
        "real": reader.read(test.states),
        "flow": reader.sample_flow(params.samples, seed=params.seed),
        "Gaussian": reader.sample_gaussian(params.samples, seed=params.seed),
    }
    documents = describe_documents(
        model, tokenizer, document_flow, workspace.shards,
        passages=params.passages, seed=params.seed,
    )  # fmt: skip
    flow_N, gaussian_N = test.log_likelihoods(state_flow)
    metrics = {
        **likelihoods(flow_N, gaussian_N, test.states.shape[1]),
        **_compare(state_flow, test, clouds, params),
        **documents.metrics,
        "samples": len(clouds["flow"].states),
        "test_states": len(test.states),
        "noise_std": facts["noise_std"],
    }
    tables = {
        "decoded.md": _decoded(model, tokenizer, test, clouds, seed=params.seed),
        "temperatures.md": _temperatures(reader, test, clouds, params),
        "documents.md": documents.markdown,
    }
    report = workspace.report("sample_flow")
    hashes = {
        "flow_weights_sha256": sha256_file(workspace.flow / "flow.safetensors"),
        "evaluation_set_sha256": test.sha256,
    }
    test.losses_of(flow_N, gaussian_N).write(report / LOSSES_FILE)
    write_json(report / "metrics.json", _none_for_nan(metrics) | hashes)
    _publish_figures(report / "figures", clouds, documents, tables)
    _log(workspace.profile, facts["mlflow_run_id"], metrics, report)
    check_round_trip(metrics["round_trip_error"], params.max_round_trip_error)


def likelihoods(flow_N: Tensor, gaussian_N: Tensor, num_dims: int) -> dict[str, float]:
    """Return negative log-likelihoods in nats per dimension with standard errors.

    Args:
        flow_N: (N,) log densities of states under the flow, nats.
        gaussian_N: (N,) likewise under its Gaussian.
        num_dims: Dimensions of the states.

    Returns:
        Mean and standard error of each, and of their difference state by state. States
        of one sequence are not independent, so the errors are lower bounds.
    """
    found = {}
    for name, values_N in (
        ("test_nll", -flow_N / num_dims),
        ("gaussian_test_nll", -gaussian_N / num_dims),
        ("gain_over_gaussian", (flow_N - gaussian_N) / num_dims),
    ):
        found[f"{name}_nats_per_dim"] = float(values_N.mean())
        found[f"{name}_standard_error"] = float(values_N.std() / math.sqrt(len(values_N)))
    return found


def check_round_trip(error: float, bound: float) -> None:
    """Refuse a flow that does not invert; NaN is refused too.

    Raises:
        GateError: `flow_round_trip`.
    """
    if not error <= bound:
        raise GateError(
            "flow_round_trip",
            f"expected a relative error of at most {bound:.2e}, got {error:.2e}",
            "lower train_flow.learning_rate and that of train_flow.mixture, or use fewer blocks "
            "(train_flow.num_blocks)",
        )


def _compare(
    state_flow: StateFlow, test: EvaluationSet, clouds: dict[str, Cloud], params: SampleFlowParams
) -> dict[str, float]:
    """Compare samples of the flow and of the Gaussian with real states."""
    real, flow, gaussian = clouds["real"], clouds["flow"], clouds["Gaussian"]
    real_white_SKD = real.white.view(*test.positions.offsets.shape, -1)
    return {
        "round_trip_error": state_flow.round_trip_error(torch.cat((real.states, flow.states))),
        "max_round_trip_error": params.max_round_trip_error,
        **moments(real.states, flow.states),
        **distances(
            real_white_SKD, {"": flow.white, "gaussian_": gaussian.white}, seed=params.seed
        ),
        **divergences({name: cloud.decoded for name, cloud in clouds.items()}, test.next_tokens),
    }


def _decoded(
    model: Any, tokenizer: Any, test: EvaluationSet, clouds: dict[str, Cloud], *, seed: int
) -> str:
    """Tabulate the tokens that are read from real states and from samples."""
    columns = {"true next token": test.next_tokens}
    for title, name in (("real states", "real"), ("samples", "flow")):
        columns[f"{title}, likeliest"] = clouds[name].decoded.likeliest
        columns[f"{title}, drawn"] = draw_tokens(model, clouds[name].states, seed=seed)
    return token_table(tokenizer, columns)


def _temperatures(
    reader: CloudReader, test: EvaluationSet, clouds: dict[str, Cloud], params: SampleFlowParams
) -> str:
    """Tabulate as many samples at each temperature as there are real states."""
    samples = {
        temperature: reader.sample_flow(len(test.states), seed=params.seed, temperature=temperature)
        for temperature in params.temperatures
    }
    rows = temperature_table(samples, clouds["real"].white, test.next_tokens)
    return f"# Samples by temperature\n\n{rows}"


def _publish_figures(
    directory: Path, clouds: dict[str, Cloud], documents: DocumentReport, tables: dict[str, str]
) -> None:
    with publish_directory(directory) as building:
        as_many = slice(len(clouds["real"].states))
        draw_samples({name: cloud.states[as_many] for name, cloud in clouds.items()}, building)
        draw_walk(documents.walk, building)
        for name, text in tables.items():
            write_text(building / name, text)


def _none_for_nan(metrics: dict[str, float]) -> dict[str, Any]:
    """Replace what JSON cannot hold."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _log(profile: str, fit_id: str | None, metrics: dict[str, float], report: Path) -> None:
    """Log the results as an MLflow run below that of the fit, and a summary line.

    A run of its own: the fit's would keep the figures of the first of several samplings.
    """
    below = {} if fit_id is None else {PARENT_RUN: fit_id}
    run_log = RunLog.open(run_name=f"sample_flow/{profile}", params={}, tags=below)
    run_log.log(0, {name: metrics[name] for name in LOGGED_METRICS})
    run_log.artifact(report / "figures", "samples")
    run_log.finish("FINISHED")
    gain = metrics["gain_over_gaussian_nats_per_dim"]
    logger.info(
        "test: the flow %s the Gaussian by %.4f +- %.4f nats per dimension; round trip %.1e",
        "beats" if gain > 0 else "LOSES TO",
        abs(gain),
        metrics["gain_over_gaussian_standard_error"],
        metrics["round_trip_error"],
    )


if __name__ == "__main__":
    run_stage(main)
