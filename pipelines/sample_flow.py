"""Stage `sample_flow`: samples of the flow, decoded through the language model's head.

    python -m pipelines.sample_flow

Test negative log-likelihood against the full-covariance Gaussian, round trip, and how
far samples resemble real states: moments, decoded tokens, a picture. A round trip out
of bounds fails the stage; losing against the Gaussian does not (promotion refuses it).

Shape legend: N states, D dimensions, V vocabulary.
"""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.artifacts import publish_directory, read_json, write_json
from pipelines.errors import GateError
from pipelines.flow_states import StateFlow, noisy_states
from pipelines.generation import readable
from pipelines.hidden_states import HiddenStates
from pipelines.language_model import load_language_model
from pipelines.params import SampleFlowParams, load_params
from pipelines.stage import run_stage
from pipelines.workspace import Workspace

SHOWN_TOKENS = 20
DECODING_BATCH = 256

logger = logging.getLogger(__name__)


def main() -> None:
    """Sample the flow of the profile in use; a bad round trip ends in exit code 1."""
    params = load_params()
    sample_flow(Workspace(params.name), params.profile.sample_flow)


def sample_flow(workspace: Workspace, params: SampleFlowParams) -> None:
    """Draw, compare, report.

    Args:
        workspace: Where shards, models and outputs are.
        params: Sizes and bounds.

    Raises:
        GateError: `flow_round_trip`, after the report is written.
    """
    from transformers import AutoTokenizer

    model = load_language_model(workspace.language_model)
    state_flow = StateFlow.load(workspace.flow)
    facts = read_json(workspace.flow / "flow_training.json")
    real = noisy_states(
        model,
        workspace.shards,
        "test",
        states=params.samples,
        states_per_sequence=params.states_per_sequence,
        noise_std=facts["noise_std"],
        seed=params.seed,
    )
    generator = torch.Generator().manual_seed(params.seed)
    sampled_ND = state_flow.sample(params.samples, generator)
    tokenizer = AutoTokenizer.from_pretrained(workspace.language_model)
    metrics = {
        **likelihoods(state_flow, real.states),
        "round_trip_error": state_flow.round_trip_error(torch.cat((real.states, sampled_ND))),
        "max_round_trip_error": params.max_round_trip_error,
        **_moments(real.states, sampled_ND),
        **_decoded(model, tokenizer, real, sampled_ND),
        "samples": params.samples,
        "test_states": len(real.states),
        "noise_std": facts["noise_std"],
    }
    report = workspace.report("sample_flow")
    write_json(report / "metrics.json", metrics)
    with publish_directory(report / "figures") as figures:
        _draw(real.states, sampled_ND, figures)
    logger.info(
        "test NLL: flow %.4f, Gaussian %.4f nats a dimension; round trip %.1e",
        metrics["test_nll_nats_per_dim"],
        metrics["gaussian_test_nll_nats_per_dim"],
        metrics["round_trip_error"],
    )
    check_round_trip(metrics["round_trip_error"], params.max_round_trip_error)


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


def likelihoods(state_flow: StateFlow, states_ND: Tensor) -> dict[str, float]:
    """Negative log-likelihood in nats a dimension with standard errors, flow and Gaussian."""
    num_states, num_dims = states_ND.shape
    figures = {}
    for prefix, log_prob_N in (
        ("", state_flow.log_prob(states_ND)),
        ("gaussian_", state_flow.gaussian.log_prob(states_ND)),
    ):
        nll_N = -log_prob_N / num_dims
        figures[f"{prefix}test_nll_nats_per_dim"] = float(nll_N.mean())
        figures[f"{prefix}test_nll_standard_error"] = float(nll_N.std() / math.sqrt(num_states))
    return figures


def _moments(real_ND: Tensor, sampled_ND: Tensor) -> dict[str, float]:
    scale_D = real_ND.std(dim=0)
    return {
        "mean_difference_in_std": float(
            ((sampled_ND.mean(dim=0) - real_ND.mean(dim=0)) / scale_D).abs().mean()
        ),
        "std_ratio": float((sampled_ND.std(dim=0) / scale_D).mean()),
    }


def _decoded(model: Any, tokenizer: Any, real: HiddenStates, sampled_ND: Tensor) -> dict[str, Any]:
    """Compare next-token distributions, averaged over real and over sampled states."""
    real_V, _ = _average_prediction(model, real.states)
    sampled_V, best_N = _average_prediction(model, sampled_ND)
    middle_V = (real_V + sampled_V) / 2
    divergence_bits = sum(
        0.5 * float((p_V * (p_V.clamp_min(1e-30) / middle_V.clamp_min(1e-30)).log2()).sum())
        for p_V in (real_V, sampled_V)
    )
    true_V = torch.bincount(real.next_tokens, minlength=len(real_V))
    return {
        "decoded_jensen_shannon_bits": divergence_bits,
        "decoded_distinct_tokens": int((torch.bincount(best_N) > 0).sum()),
        "most_frequent_decoded": _most_frequent(tokenizer, torch.bincount(best_N)),
        "most_frequent_true": _most_frequent(tokenizer, true_V),
    }


def _average_prediction(model: Any, states_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The mean next-token distribution (V,) float64, and the likeliest token of each state."""
    total_V = torch.zeros(model.config.vocab_size, dtype=torch.float64)
    best: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(states_ND), DECODING_BATCH):
            batch_ND = states_ND[start : start + DECODING_BATCH].to(model.device)
            logits_NV = model.lm.logits(batch_ND).float().cpu()
            total_V += logits_NV.softmax(dim=-1).double().sum(dim=0)
            best.append(logits_NV.argmax(dim=-1))
    return total_V / len(states_ND), torch.cat(best)


def _most_frequent(tokenizer: Any, counts_V: Tensor) -> list[str]:
    present = int((counts_V > 0).sum())
    ids = counts_V.topk(min(SHOWN_TOKENS, present)).indices.tolist()
    return [readable(tokenizer, [token]) or tokenizer.convert_ids_to_tokens(token) for token in ids]


def _draw(real_ND: Tensor, sampled_ND: Tensor, directory: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mean_D = real_ND.mean(dim=0)
    axes_DD = torch.linalg.svd(real_ND - mean_D, full_matrices=False).Vh[:4].T
    clouds = {"real": (real_ND - mean_D) @ axes_DD, "sampled": (sampled_ND - mean_D) @ axes_DD}
    colours = {"real": "#40618f", "sampled": "#c98a2b"}
    figure, panels = plt.subplots(
        1, 2, figsize=(8.4, 4.0), sharex=True, sharey=True, layout="constrained"
    )
    for panel, (name, points_N4) in zip(panels, clouds.items(), strict=True):
        panel.scatter(points_N4[:, 0], points_N4[:, 1], s=4, alpha=0.4, color=colours[name])
        panel.set(title=f"{name} states", xlabel="first principal axis")
    panels[0].set_ylabel("second principal axis")
    figure.savefig(directory / "projection.png", dpi=120)
    plt.close(figure)
    figure, panels = plt.subplots(1, 4, figsize=(10, 2.6), layout="constrained")
    for axis, panel in enumerate(panels):
        for name, points_N4 in clouds.items():
            panel.hist(
                points_N4[:, axis], bins=40, density=True, histtype="step",
                label=name, color=colours[name],
            )  # fmt: skip
        panel.set(title=f"principal axis {axis + 1}", yticks=[])
    panels[0].legend()
    figure.savefig(directory / "marginals.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_stage(main)
