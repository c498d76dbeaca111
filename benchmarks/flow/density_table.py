"""The tables of `benchmarks/flow/density.py`, from the runs that are complete.

`detail` has a row for each peer on each set, `summary` the targets: the best peer on each set, and
the fastest spline. A set that lacks runs is reported as missing and is not compared.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.flow.peers import MODELS, OURS, SPLINES
from benchmarks.flow.sets import SETS
from benchmarks.record import row

LEARNING_RATES, SEEDS = (1e-3, 3e-3, 9e-3), (0, 1, 2)
MAX_ROUND_TRIP, MAX_GAP_NATS, MIN_SAMPLING_RATIO, MIN_WINS = 1e-5, 0.05, 0.9, 4

Run = dict[str, Any]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """The runs of one model on one set at its best learning rate, one per seed."""

    runs: list[Run]

    @property
    def nll_nats(self) -> float:
        """Mean test loss over seeds."""
        return statistics.mean(run["test_nll_nats"] for run in self.runs)

    @property
    def error_nats(self) -> float:
        """Standard error of the mean over seeds."""
        return statistics.stdev(run["test_nll_nats"] for run in self.runs) / math.sqrt(
            len(self.runs)
        )

    @property
    def lr(self) -> float:
        """The learning rate."""
        return float(self.runs[0]["lr"])

    def worst(self, key: str) -> float:
        """The largest value over seeds."""
        return max(float(run[key]) for run in self.runs)


def best_lr(grid: list[Run]) -> float:
    """Return the learning rate of the lowest validation loss; None is a loss that is not finite."""
    finite = [run for run in grid if run["validation_nll_nats"] is not None]
    return float(min(finite, key=lambda run: run["validation_nll_nats"])["lr"])


def cells(runs: list[Run], name: str) -> dict[str, Cell]:
    """Return the complete cells of a set by model."""
    found = {}
    for model in MODELS:
        mine = [run for run in runs if (run["set"], run["model"]) == (name, model)]
        grid = [run for run in mine if run["seed"] == SEEDS[0]]
        if len(grid) == len(LEARNING_RATES):
            lr = best_lr(grid)
            chosen = [run for run in mine if run["lr"] == lr]
            if len(chosen) == len(SEEDS):
                found[model] = Cell(chosen)
    return found


def detail(runs: list[Run], timed: dict[str, Any]) -> Rows:
    """Return one row per peer and set for the test loss, then speed and exactness of each model."""
    rows = []
    for name in SETS:
        found = cells(runs, name)
        if OURS not in found:
            continue
        rows += [_loss(name, found, peer) for peer in found if peer != OURS]
        for model, cell in found.items():
            what = f"{name}: {model}, lr {cell.lr:g}"
            if cell.lr in (LEARNING_RATES[0], LEARNING_RATES[-1]):
                what += " (edge of the grid)"
            rows.append(row(f"{what}, round-trip error", cell.worst("round_trip_error"), "std"))
            rows.append(row(f"{what}, log-det error", cell.worst("log_det_error_nats"), "nats"))
        if name in timed:
            for kind, unit in (("log_prob_per_s", "scored/s"), ("sample_per_s", "sampled/s")):
                rows += [row(f"{name}: {m}", v, unit) for m, v in timed[name][kind].items()]
    return rows


def summary(runs: list[Run], timed: dict[str, Any]) -> Rows:
    """Return the targets, met or missed."""
    rows, wins, ties = [], 0, 0
    complete = {name: cells(runs, name) for name in SETS}
    for name, found in complete.items():
        if len(found) < len(MODELS):
            rows.append(row(f"MISSING: {name}", len(MODELS) - len(found), "models"))
            continue
        peer = min((m for m in MODELS if m != OURS), key=lambda m: found[m].nll_nats)
        rows.append(_loss(name, found, peer))
        ahead = found[OURS].nll_nats - found[peer].nll_nats
        wins += ahead < 0
        ties += 0 <= ahead <= max(found[OURS].error_nats, found[peer].error_nats)
    rows.append(
        row(
            "sets where the mean test loss is below every peer's",
            wins,
            f"of {len(SETS)}",
            target=f">= {MIN_WINS}, within one s.e. on the rest",
            met=wins >= MIN_WINS and wins + ties == len(SETS),
        )
    )
    for name, found in complete.items():
        if len(found) == len(MODELS):
            rows += _limits(name, found[OURS])
        if name in timed:
            rows += _speed(name, timed[name])
    return rows


def _loss(name: str, found: dict[str, Cell], peer: str) -> dict[str, Any]:
    ours, theirs = found[OURS], found[peer]
    entry = row(
        f"{name}: test loss",
        ours.nll_nats,
        f"± {ours.error_nats:.2g} nats",
        peer=f"{peer} (± {theirs.error_nats:.2g})",
        peer_value=theirs.nll_nats,
        target="lower",
        met=ours.nll_nats < theirs.nll_nats,
    )
    return {**entry, "ratio": None}


def _limits(name: str, ours: Cell) -> Rows:
    error = ours.worst("round_trip_error")
    rows = [
        row(
            f"{name}: largest round-trip error",
            error,
            "std",
            target=f"<= {MAX_ROUND_TRIP:g}",
            met=error <= MAX_ROUND_TRIP,
        )
    ]
    entropy_nats = ours.runs[0]["entropy_nats"]
    if entropy_nats is not None:
        gap_nats = ours.nll_nats - entropy_nats
        rows.append(
            row(
                f"{name}: test loss above the true entropy of {entropy_nats:.3f}",
                gap_nats,
                "nats",
                target=f"<= {MAX_GAP_NATS:g}",
                met=gap_nats <= MAX_GAP_NATS,
            )
        )
    return rows


def _speed(name: str, timed: dict[str, Any]) -> Rows:
    score, sample = timed["log_prob_per_s"], timed["sample_per_s"]
    peer = max(SPLINES, key=lambda model: score[model])
    ratio = sample[OURS] / score[OURS]
    what = f"{name} ({timed['dim']} wide)"
    return [
        row(
            f"{what}: scoring",
            score[OURS],
            "1/s",
            peer=peer,
            peer_value=score[peer],
            target=">= 1x",
            met=score[OURS] >= score[peer],
        ),
        row(
            f"{what}: sampling over scoring",
            ratio,
            "",
            target=f">= {MIN_SAMPLING_RATIO:g}",
            met=ratio >= MIN_SAMPLING_RATIO,
        ),
    ]
