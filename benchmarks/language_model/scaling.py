"""Loss against parameters and tokens, a fitted scaling law, and its projection for the mission.

    python -m benchmarks.language_model.scaling data/wiki-zh/shards --tokens 153600

Four widths, each trained on a quarter, a half and all of `--tokens` with a schedule of its own
(AdamW, the rest as in `quality.py`); the largest, of about 10 M parameters without embeddings, is
compared with GPT-2 and Llama of equal size, once with AdamW and once with Muon. The law is that of
Hoffmann et al. (2022), L = E + A / N^a + B / D^b (equation 2), with N the parameters without
embeddings and D the tokens. A law extrapolated so far says little: quote the projection only with
its interval (bootstrap over the runs). Runs are kept under `runs/lm_scaling/`.
"""

import argparse
import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy.optimize import least_squares

from benchmarks.language_model.quality import (
    CONFIGS,
    LENGTH,
    VOCABULARY,
    arguments_of,
    kept_in,
    make,
    parameters,
    run_once,
)
from benchmarks.language_model.quality_table import (
    BOUNDS,
    OPTIMISERS,
    OURS,
    PEERS,
    against_best,
    bits,
)
from benchmarks.peers import check_sizes, gpt2_config, llama_config
from benchmarks.record import row, write
from pipelines.base.run_stage import run_stage

RUNS = Path(__file__).resolve().parents[2] / "runs" / "lm_scaling"
PLOT = Path(__file__).resolve().parents[2] / "docs" / "images" / "lm_scaling.png"
WIDTHS, LARGEST, HEADS = (64, 96, 160), 288, 4
FRACTIONS = (4, 2, 1)
LEARNING_RATES_AT_128 = {"enigma": 3e-3, "gpt2": 9e-3, "llama": 3e-3}
"""The best rates in `quality.py`; scaled by 1 / sqrt(width) at other widths, since wider models
need smaller steps."""
MISSION = {"parameters": 24.0e6, "tokens": 305e6}
RESAMPLES = 200

Floats = npt.NDArray[np.float64]


def enigma_of(width: int) -> Any:
    """The configuration of `benchmarks/language_model/quality.py` at another width."""
    config = copy.deepcopy(CONFIGS["enigma"])
    config.d = width
    return config


def largest() -> dict[str, Any]:
    """The three models of about 10 M parameters without embeddings."""
    return {
        "enigma": enigma_of(LARGEST),
        "gpt2": gpt2_config(VOCABULARY, LARGEST, HEADS, 10, LENGTH),
        "llama": llama_config(VOCABULARY, LARGEST, HEADS, 10, LENGTH, hidden=776),
    }


def run(
    arguments: argparse.Namespace,
    name: str,
    config: Any,
    fraction: int = 1,
    optimiser: str = "adamw",
) -> dict[str, Any]:
    """Make or load one kept run, and add the sizes that the law needs."""
    part = argparse.Namespace(shards=arguments.shards, tokens=arguments.tokens // fraction)
    lr = LEARNING_RATES_AT_128[name] * math.sqrt(128 / config.hidden_size)
    spec = {"model": name, "optimiser": optimiser, "seed": 0, "lr": lr}
    found = run_once(part, kept_in(part, RUNS, config), spec, partial(make, name, 0, config))
    count = parameters(make(name, 0, config))["without embeddings"]
    return {**found, "parameters": count, "tokens": part.tokens, "width": config.hidden_size}


def law(coefficients: Floats, parameters_R: Floats, tokens_R: Floats) -> Floats:
    """Compute the loss in nats per token; `coefficients` are E, ln A, a, ln B, b."""
    e, ln_a, a, ln_b, b = coefficients
    loss: Floats = e + np.exp(ln_a - a * np.log(parameters_R)) + np.exp(ln_b - b * np.log(tokens_R))
    return loss


def fit(points: Floats) -> Floats:
    """Fit the law by least squares.

    Args:
        points: `(R, 3)`: parameters, tokens, loss of each run.

    Returns:
        The coefficients, bounded to plausible values for text: E to 1 to 3.5 nats, the exponents
        to 0.05 to 0.6.
    """
    parameters_R, tokens_R, loss_R = points.T
    found = least_squares(
        lambda c: law(c, parameters_R, tokens_R) - loss_R,
        x0=[2.0, 3.0, 0.3, 4.0, 0.3],
        bounds=([1.0, -5.0, 0.05, -5.0, 0.05], [3.5, 15.0, 0.6, 15.0, 0.6]),
        max_nfev=5000,
    )
    coefficients: Floats = found.x
    return coefficients


def projection_rows(points: Floats) -> list[dict[str, Any]]:
    """The coefficients, the error of the fit, and the mission with its 90 % interval."""
    coefficients = fit(points)
    error = law(coefficients, *points.T[:2]) - points[:, 2]
    at = (np.array([MISSION["parameters"]]), np.array([MISSION["tokens"]]))
    rng = np.random.default_rng(0)
    draws = [
        law(fit(points[rng.integers(len(points), size=len(points))]), *at).item()
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(draws, [0.05, 0.95])
    names = ("E", "ln A", "a", "ln B", "b")
    return [
        *(row(f"law, {n}", c, "") for n, c in zip(names, coefficients, strict=True)),
        row("law, root mean square error", float(np.sqrt(np.mean(error**2))), "nats"),
        row("mission, projected loss", law(coefficients, *at).item(), "nats"),
        row("mission, projected loss, 5 % quantile", float(low), "nats"),
        row("mission, projected loss, 95 % quantile", float(high), "nats"),
        row("mission, projected perplexity", math.exp(law(coefficients, *at).item()), ""),
        row("mission, projected perplexity, 5 % quantile", math.exp(low), ""),
        row("mission, projected perplexity, 95 % quantile", math.exp(high), ""),
    ]


def draw(runs: list[dict[str, Any]], coefficients: Floats) -> None:
    """Draw the loss against tokens and the law, one line per width."""
    figure = Figure(figsize=(6.4, 4))
    axes = figure.subplots()
    for i, width in enumerate(sorted({found["width"] for found in runs})):
        mine = [found for found in runs if found["width"] == width]
        colour = f"C{i}"
        axes.plot(
            [found["tokens"] for found in mine],
            [found["validation"]["loss_nats"] for found in mine],
            "o",
            color=colour,
            label=f"{mine[0]['parameters'] / 1e6:.1f} M",
        )
        tokens_R = np.geomspace(min(f["tokens"] for f in runs), max(f["tokens"] for f in runs))
        parameters_R = np.full_like(tokens_R, mine[0]["parameters"])
        axes.plot(tokens_R, law(coefficients, parameters_R, tokens_R), color=colour, lw=1)
    axes.set(xscale="log", xlabel="training tokens", ylabel="validation loss, nats per token")
    axes.legend(frameon=False, title="parameters without embeddings")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=130)


def largest_rows(runs: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Test scores of the largest models by optimiser; Enigma against the better peer."""
    rows = []
    for optimiser, found in runs.items():
        test = {name: bits(run, "test") for name, run in found.items()}
        what = f"{found[OURS]['parameters'] / 1e6:.1f} M, {optimiser}, test"
        rows += [row(f"{name}, {what}", test[name], "bits/char") for name in PEERS]
        rows.append(against_best(f"{OURS}, {what}", "bits/char", test, BOUNDS[optimiser]))
    return rows


def main() -> None:
    """Train the runs that are not kept yet; compare at the largest size, fit and project."""
    arguments = arguments_of(__doc__)
    models = largest()
    for kind in ("all", "without embeddings"):
        check_sizes({n: parameters(make(n, 0, c))[kind] for n, c in models.items()}, kind)
    runs = [
        run(arguments, "enigma", enigma_of(width), fraction)
        for width in WIDTHS
        for fraction in FRACTIONS
    ]
    at_largest = {
        optimiser: {n: run(arguments, n, c, optimiser=optimiser) for n, c in models.items()}
        for optimiser in OPTIMISERS
    }
    runs.append(at_largest["adamw"]["enigma"])
    rows = [
        row(
            f"enigma, {found['parameters'] / 1e6:.2f} M, {found['tokens']:,} tokens",
            found["validation"]["loss_nats"],
            "nats",
        )
        for found in runs
    ]
    rows += largest_rows(at_largest)
    points = np.array([[f["parameters"], f["tokens"], f["validation"]["loss_nats"]] for f in runs])
    draw(runs, fit(points))
    write("lm_scaling", rows + projection_rows(points), packages=("scipy",))


if __name__ == "__main__":
    run_stage(main)
