"""Figures of a flow: its fit, and its samples beside real states.

Shape legend: N states, D dimensions, A principal axes.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipelines.flow.documents.walk import Walk
from pipelines.flow.fit import Evaluation

COLOURS = {"real": "#40618f", "flow": "#c98a2b", "Gaussian": "#7a7a7a"}
NUM_MARGINALS = 8


def draw_history(
    history: Sequence[Evaluation], gaussian_nll_nats_per_dim: float, directory: Path
) -> None:
    """Draw `nll.png`: the course of a fit, with the Gaussian as a horizontal line.

    Args:
        history: Evaluations of the fit.
        gaussian_nll_nats_per_dim: Loss of the Gaussian on the held-out states.
        directory: Where to write the figure.
    """
    steps = [row.step for row in history]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(
        gaussian_nll_nats_per_dim, color=COLOURS["Gaussian"], linestyle="--",
        label="Gaussian, held-out states",
    )  # fmt: skip
    axes.plot(
        steps, [row.train_nll_nats_per_dim for row in history],
        color=COLOURS["real"], label="flow, train states",
    )  # fmt: skip
    axes.plot(
        steps, [row.validation_nll_nats_per_dim for row in history],
        color=COLOURS["flow"], marker="o", markersize=4, label="flow, held-out states",
    )  # fmt: skip
    axes.set(xlabel="optimiser step", ylabel="negative log-likelihood\n(nats per dimension)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(directory / "nll.png", dpi=120)


def draw_samples(clouds: dict[str, Tensor], directory: Path) -> None:
    """Draw `projection.png` and `marginals.png` on the principal axes of the real states.

    Args:
        clouds: (N, D) states by name; the names are those of `COLOURS`, "real" first.
        directory: Where to write the figures.
    """
    mean_D = clouds["real"].mean(dim=0)
    axes_DA = torch.linalg.svd(clouds["real"] - mean_D, full_matrices=False).Vh.T
    projected = {name: (states_ND - mean_D) @ axes_DA for name, states_ND in clouds.items()}
    _draw_projection(projected, directory / "projection.png")
    _draw_marginals(projected, directory / "marginals.png")


def draw_walk(walk: Walk, directory: Path) -> None:
    """Draw `walk.png`: the likelihood of the states on the path between two texts.

    Args:
        walk: The path.
        directory: Where to write the figure.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for nll_K, colour, label in (
        (walk.nll_nats_per_dim, "flow", "through the base of the flow"),
        (walk.straight_nll_nats_per_dim, "Gaussian", "on the straight line"),
    ):
        axes.plot(walk.shares, nll_K, color=COLOURS[colour], marker="o", markersize=4, label=label)
    axes.set(xlabel="share of the way", ylabel="negative log-likelihood\n(nats per dimension)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(directory / "walk.png", dpi=120)


def _draw_projection(projected: dict[str, Tensor], path: Path) -> None:
    everything_N2 = torch.cat([points_NA[:, :2] for points_NA in projected.values()])
    low_2, high_2 = everything_N2.quantile(torch.tensor([0.001, 0.999]), dim=0)
    (left, bottom), (right, top) = low_2.tolist(), high_2.tolist()
    figure = Figure(figsize=(3.6 * len(projected), 3.6), layout="constrained")
    panels = figure.subplots(1, len(projected), sharex=True, sharey=True, squeeze=False)
    for panel, (name, points_NA) in zip(panels[0], projected.items(), strict=True):
        panel.hexbin(
            points_NA[:, 0], points_NA[:, 1], gridsize=36, mincnt=1, bins="log", cmap="viridis",
            extent=(left, right, bottom, top),
        )  # fmt: skip
        panel.set(title=name, xlabel="principal axis 1")
    panels[0][0].set_ylabel("principal axis 2")
    figure.savefig(path, dpi=120)


def _draw_marginals(projected: dict[str, Tensor], path: Path) -> None:
    num_dims = projected["real"].shape[1]
    # Evenly spaced from the widest axis to the narrowest.
    chosen = sorted({round(i) for i in torch.linspace(0, num_dims - 1, NUM_MARGINALS).tolist()})
    columns = (len(chosen) + 1) // 2
    figure = Figure(figsize=(2.5 * columns, 4.4), layout="constrained")
    panels = figure.subplots(2, columns, squeeze=False)
    for panel, axis in zip(panels.flat, chosen, strict=False):
        low, high = projected["real"][:, axis].quantile(torch.tensor([0.001, 0.999])).tolist()
        for name, points_NA in projected.items():
            # Shares of all states, including those outside the figure.
            share_N = torch.full((len(points_NA),), 1 / len(points_NA))
            panel.hist(
                points_NA[:, axis], bins=40, range=(low, high), weights=share_N, histtype="step",
                color=COLOURS[name], label=name,
            )  # fmt: skip
        panel.set(title=f"principal axis {axis + 1}", yticks=[])
    panels.flat[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
