"""The table and the plot of `benchmarks.language_model.quality`, from the complete runs.

A cell is a model with an optimiser: all seeds at the best learning rate of its grid, which is run
with AdamW at seed 0. Missing runs are listed, and no comparison is made without all models.
"""

import math
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.record import row

MODELS, OPTIMISERS, SEEDS = ("enigma", "gpt2", "llama"), ("adamw", "muon"), (0, 1, 2)
LEARNING_RATES = (1e-3, 3e-3, 9e-3)
BOUNDS = {"adamw": 0.98, "muon": 0.97}
"""Bound on Enigma's bits as a share of the better peer's: AdamW for all, and best recipes."""
OURS, PEERS = MODELS[0], MODELS[1:]
COLOURS = {"enigma": "#b5482a", "gpt2": "#3465a4", "llama": "#888888"}
LINES = {"adamw": "--", "muon": "-"}
PLOT = Path(__file__).resolve().parents[2] / "docs" / "images" / "lm_quality.png"

Run = dict[str, Any]
Cells = dict[tuple[str, str], list[Run]]


def bits(run: Run, split: str) -> float:
    """Bits per character; infinite for a run whose loss was not finite."""
    found = run[split]["bits_per_character"]
    return math.inf if found is None else float(found)


def best_lr(grid: list[Run]) -> float:
    """Find the learning rate with the fewest bits per validation character."""
    return float(min(grid, key=lambda run: bits(run, "validation"), default={"lr": math.nan})["lr"])


def cells(runs: list[Run]) -> tuple[Cells, dict[tuple[str, str], int]]:
    """Sort runs into cells.

    Returns:
        The complete cells, one run per seed at the learning rate that was best with AdamW; and
        how many runs each other cell lacks.
    """
    complete: Cells = {}
    missing = {}
    for model in MODELS:
        mine = [run for run in runs if run["model"] == model]
        grid = [run for run in mine if (run["optimiser"], run["seed"]) == ("adamw", 0)]
        for optimiser in OPTIMISERS:
            cell = [r for r in mine if r["optimiser"] == optimiser and r["lr"] == best_lr(grid)]
            lacking = len(SEEDS) - len(cell) + len(LEARNING_RATES) - len(grid)
            if lacking:
                missing[model, optimiser] = lacking
            else:
                complete[model, optimiser] = sorted(cell, key=lambda run: int(run["seed"]))
    return complete, missing


def mean_bits(cell: list[Run], split: str) -> float:
    """Mean bits per character over seeds."""
    return statistics.mean(bits(run, split) for run in cell)


def mean_curve(cell: list[Run], key: str) -> list[float]:
    """Mean of one column of the curve over seeds; infinite where a loss was not finite."""
    columns = [[math.inf if p[key] is None else float(p[key]) for p in r["curve"]] for r in cell]
    return [statistics.mean(values) for values in zip(*columns, strict=True)]


def against_best(name: str, unit: str, values: dict[str, float], bound: float) -> dict[str, Any]:
    """Compare Enigma with the best peer; the target is at most `bound` times its value."""
    return _against(name, unit, values, min(PEERS, key=lambda peer: values[peer]), bound)


def table(
    runs: list[Run], counts: dict[str, dict[str, int]], peaks_mib: dict[str, float]
) -> list[dict[str, Any]]:
    """Make all rows: sizes and memory, the cells, missing runs, and the two comparisons.

    Args:
        runs: The complete runs.
        counts: Parameters of each model, all and without embeddings.
        peaks_mib: Peak memory of a training step of each model.
    """
    complete, missing = cells(runs)
    rows = [
        row(f"{model}, parameters, {kind}", count, "")
        for model, kinds in counts.items()
        for kind, count in kinds.items()
    ]
    rows += [row(f"{name}, peak of a training step", peaks_mib[name], "MiB") for name in PEERS]
    rows.append(against_best(f"{OURS}, peak of a training step", "MiB", peaks_mib, 1 / 3))
    for (model, optimiser), cell in complete.items():
        name = f"{model}, {optimiser}, lr {cell[0]['lr']:g}"
        if cell[0]["lr"] in (LEARNING_RATES[0], LEARNING_RATES[-1]):
            name += " (edge of the grid)"
        for split in ("validation", "test"):
            rows.append(row(f"{name}, {split}, mean", mean_bits(cell, split), "bits/char"))
            found = [bits(run, split) for run in cell]
            rows.append(row(f"{name}, {split}, spread", max(found) - min(found), "bits/char"))
        rows.append(row(f"{name}, training", mean_curve(cell, "processor_s")[-1], "s"))
    for (model, optimiser), count in missing.items():
        rows.append(row(f"MISSING: {model}, {optimiser}", count, "runs"))
    if all((model, "adamw") in complete for model in MODELS):
        rows.append(
            _quality("(a) AdamW", {m: complete[m, "adamw"] for m in MODELS}, BOUNDS["adamw"])
        )
    if not missing:
        best = {
            model: min(
                (complete[model, optimiser] for optimiser in OPTIMISERS),
                key=lambda cell: mean_bits(cell, "validation"),
            )
            for model in MODELS
        }
        rows += [_quality("(b) best recipe", best, BOUNDS["muon"]), *_speed(best)]
    return rows


def draw(runs: list[Run]) -> None:
    """Draw the validation loss of the complete cells against tokens and processor seconds."""
    complete, _ = cells(runs)
    if not complete:
        return
    figure = Figure(figsize=(10, 4))
    panels = figure.subplots(1, 2, sharey=True)
    units = (("tokens", 1000, "thousand training tokens"), ("processor_s", 1, "processor seconds"))
    for axes, (key, unit, label) in zip(panels, units, strict=True):
        for (model, optimiser), cell in complete.items():
            axes.plot(
                [value / unit for value in mean_curve(cell, key)],
                mean_curve(cell, "validation_loss_nats"),
                LINES[optimiser],
                color=COLOURS[model],
                label=f"{model}, {optimiser}",
            )
        axes.set(xlabel=label, xlim=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="validation loss, nats per token")
    panels[1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=130)


def _quality(title: str, chosen: dict[str, list[Run]], bound: float) -> dict[str, Any]:
    values = {model: mean_bits(cell, "test") for model, cell in chosen.items()}
    return against_best(f"{title}, test", "bits/char", values, bound)


def _speed(chosen: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """What Enigma needs to reach the better peer's final validation loss."""
    losses = {model: mean_curve(cell, "validation_loss_nats") for model, cell in chosen.items()}
    peer = min(PEERS, key=lambda name: losses[name][-1])
    reached = [i for i, loss in enumerate(losses[OURS]) if loss <= losses[peer][-1]]
    rows = []
    for key, what, bound in (("tokens", "tokens", 0.6), ("processor_s", "processor seconds", 0.75)):
        spent = {model: mean_curve(cell, key) for model, cell in chosen.items()}
        values = {peer: spent[peer][-1], OURS: spent[OURS][reached[0] if reached else -1]}
        title = f"(b) {what} to the peer's final loss" + ("" if reached else ": NOT REACHED within")
        found = _against(title, "", values, peer, bound)
        rows.append(found if reached else {**found, "met": False})
    return rows


def _against(
    name: str, unit: str, values: dict[str, float], peer: str, bound: float
) -> dict[str, Any]:
    """Compare Enigma with a peer; the target is at most `bound` times its value."""
    return row(
        name,
        values[OURS],
        unit,
        peer=peer,
        peer_value=values[peer],
        target=f"<= {bound:.3g}x",
        met=values[OURS] <= bound * values[peer],
    )
