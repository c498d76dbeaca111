"""Stage `sample_flow`: samples of the flow, decoded through the language model's head.

    python -m pipelines.sample_flow

Test negative log-likelihood against the full-covariance Gaussian, round trip, and how
far samples resemble real states: moments, energy distance, a two-sample classifier, decoded
tokens, temperatures, documents, pictures. A round trip out of bounds fails the stage; losing
against the Gaussian does not (promotion refuses it).

Shape legend: N states, D dimensions, V vocabulary.
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipelines.base.artifacts import (
    publish_directory,
    read_json,
    sha256_file,
    write_json,
    write_text,
)
from pipelines.base.errors import GateError
from pipelines.base.run_stage import run_stage
from pipelines.base.workspace import Workspace
from pipelines.flow.decoding import Decoded, decode, markdown
from pipelines.flow.documents import DIRECTORY, DocumentFlow
from pipelines.flow.figures import draw_samples, draw_walk
from pipelines.flow.judged import JudgedStates, judged_states
from pipelines.flow.quality import distances, divergences, moments, temperature_table
from pipelines.flow.states import StateFlow, check_language_model
from pipelines.flow.walk import DocumentReport, describe_documents
from pipelines.language_model.losses import LOSSES_FILE
from pipelines.language_model.published import load_language_model
from pipelines.params import SampleFlowParams, load_params
from pipelines.tracking.run_log import RunLog

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM

logger = logging.getLogger(__name__)

Reading = tuple[Tensor, Decoded]
"""(M, D) samples, and what the head reads from them."""


def main() -> None:
    """Sample the flow of the profile in use; a bad round trip ends in exit code 1."""
    params = load_params()
    workspace = Workspace(params.name)
    sample_flow(workspace, params.profile.sample_flow)


def sample_flow(workspace: Workspace, params: SampleFlowParams) -> None:
    """Draw, compare, report.

    Args:
        workspace: Where shards, models and outputs are.
        params: Sizes and bounds.

    Raises:
        GateError: `flow_samples`; `flow_round_trip`, after the report is written.
        UserError: If the flow belongs to another language model, or a file is missing.
    """
    from transformers import AutoTokenizer

    facts = read_json(workspace.flow / "flow_training.json")
    check_language_model(workspace.language_model, facts["lm_weights_sha256"])
    model = load_language_model(workspace.language_model)
    state_flow = StateFlow.load(workspace.flow, model.device)
    judged = judged_states(model, workspace.shards, params, noise_std=facts["noise_std"])
    real_ND = judged.states
    clouds = {
        "real": real_ND,
        "flow": state_flow.sample(params.samples, seed=params.seed),
        "Gaussian": state_flow.gaussian.sample(params.samples, seed=params.seed),
    }
    check_samples(clouds["flow"])
    decoded = {name: decode(model, cloud, seed=params.seed) for name, cloud in clouds.items()}
    flow_N, gaussian_N = judged.log_likelihoods(state_flow)
    tokenizer = AutoTokenizer.from_pretrained(workspace.language_model)
    flow = DocumentFlow.load(workspace.flow / DIRECTORY, model.device)
    documents = describe_documents(
        model, tokenizer, flow, workspace.shards, passages=params.passages, seed=params.seed
    )
    metrics: dict[str, float] = {
        **likelihoods(flow_N, gaussian_N, real_ND.shape[1]),
        "round_trip_error": state_flow.round_trip_error(torch.cat((real_ND, clouds["flow"]))),
        "max_round_trip_error": params.max_round_trip_error,
        **moments(real_ND, clouds["flow"]),
        **_distances(state_flow, judged, clouds, seed=params.seed),
        **divergences(decoded, judged.next_tokens),
        **documents.metrics,
        "samples": params.samples,
        "test_states": len(real_ND),
        "noise_std": facts["noise_std"],
    }
    names = {
        "flow_weights_sha256": sha256_file(workspace.flow / "flow.safetensors"),
        "evaluation_set_sha256": judged.evaluation_set_sha256,
    }
    tables = {
        "decoded.md": markdown(tokenizer, judged.next_tokens, decoded["real"], decoded["flow"]),
        "temperatures.md": _temperatures(
            model, state_flow, judged, params, (clouds["flow"], decoded["flow"])
        ),
        "documents.md": documents.markdown,
    }
    report = workspace.report("sample_flow")
    judged.losses_of(flow_N, gaussian_N).write(report / LOSSES_FILE)
    _write(report, metrics, names, tables, lambda directory: _draw(clouds, documents, directory))
    _log(workspace.profile, facts["mlflow_run_id"], metrics, report)
    _say(metrics)
    check_round_trip(metrics["round_trip_error"], params.max_round_trip_error)


def _write(
    report: Path,
    metrics: dict[str, float],
    names: dict[str, str],
    tables: dict[str, str],
    draw: Callable[[Path], None],
) -> None:
    numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    write_json(report / "metrics.json", numbers | names)
    with publish_directory(report / "figures") as figures:
        draw(figures)
        for name, text in tables.items():
            write_text(figures / name, text)


def _draw(clouds: dict[str, Tensor], documents: DocumentReport, directory: Path) -> None:
    draw_samples(clouds, directory)
    draw_walk(documents.walk, directory)


def check_samples(sampled_ND: Tensor) -> None:
    """Refuse a flow whose samples are not numbers; nothing can be said about them.

    Raises:
        GateError: `flow_samples`.
    """
    broken = int((~sampled_ND.isfinite().all(dim=1)).sum())
    if broken:
        raise GateError(
            "flow_samples",
            f"{broken} of {len(sampled_ND)} samples hold NaN or infinity",
            "lower train_flow.learning_rate, or take fewer blocks",
        )


def check_round_trip(error: float, bound: float) -> None:
    """Refuse a flow that does not invert; NaN is refused too.

    Raises:
        GateError: `flow_round_trip`.
    """
    if not error <= bound:
        raise GateError(
            "flow_round_trip",
            f"relative error {error:.2e} is above {bound:.2e}",
            "lower train_flow.learning_rate, or take fewer blocks",
        )


def likelihoods(flow_N: Tensor, gaussian_N: Tensor, num_dims: int) -> dict[str, float]:
    """Negative log-likelihood in nats per dimension with standard errors, flow and Gaussian.

    Args:
        flow_N: (N,) log densities of states by the flow, nats.
        gaussian_N: (N,) by its Gaussian.
        num_dims: Of the states.

    Returns:
        Mean and standard error of each, and of their difference state by state. States
        of one sequence are not independent, so the errors are lower bounds.
    """
    figures = {}
    for name, values_N in (
        ("test_nll", -flow_N / num_dims),
        ("gaussian_test_nll", -gaussian_N / num_dims),
        ("gain_over_gaussian", (flow_N - gaussian_N) / num_dims),
    ):
        figures[f"{name}_nats_per_dim"] = float(values_N.mean())
        figures[f"{name}_standard_error"] = float(values_N.std() / math.sqrt(len(values_N)))
    return figures


def _distances(
    state_flow: StateFlow, judged: JudgedStates, clouds: dict[str, Tensor], *, seed: int
) -> dict[str, float]:
    """Compare clouds where no direction weighs more than another."""
    white = {name: state_flow.gaussian.whiten(cloud_ND) for name, cloud_ND in clouds.items()}
    real_SKD = white["real"].view(*judged.positions.offsets.shape, -1)
    return distances(real_SKD, {"": white["flow"], "gaussian_": white["Gaussian"]}, seed=seed)


def _temperatures(
    model: "EnigmaForCausalLM",
    state_flow: StateFlow,
    judged: JudgedStates,
    params: SampleFlowParams,
    at_one: Reading,
) -> str:
    """The table of temperatures, of which the samples of 1 have been read already."""

    def read_at(temperature: float) -> Reading:
        if temperature == 1:
            return at_one
        sampled_ND = state_flow.sample(params.samples, seed=params.seed, temperature=temperature)
        return sampled_ND, decode(model, sampled_ND, seed=params.seed)

    def whitened_at(temperature: float) -> Reading:
        sampled_ND, decoded = read_at(temperature)
        return state_flow.gaussian.whiten(sampled_ND), decoded

    real_ND = state_flow.gaussian.whiten(judged.states)
    rows = temperature_table(whitened_at, params.temperatures, real_ND, judged.next_tokens)
    return f"# Samples by temperature\n\n{rows}"


def _log(profile: str, run_id: str | None, metrics: dict[str, float], report: Path) -> None:
    """Put the figures into the MLflow run of the fit."""
    run_log = RunLog.open(run_name=f"train_flow/{profile}", params={}, tags={}, run_id=run_id)
    names = (
        "test_nll_nats_per_dim",
        "gaussian_test_nll_nats_per_dim",
        "round_trip_error",
        "energy_distance",
        "two_sample_auc",
        "true_jensen_shannon_bits",
    )
    run_log.log(0, {name: metrics[name] for name in names})
    run_log.artifact(report / "figures", "samples")
    run_log.finish("FINISHED")


def _say(metrics: dict[str, float]) -> None:
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
