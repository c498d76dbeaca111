"""The tables of `benchmarks.flow.density`, from the runs that are there.

For each set every peer, the best one first, and the targets. A set that lacks runs is reported with
how many models are complete, and is not compared.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.flow.peers import MIXTURE, MODELS, OURS, SHAPES, USUAL
from benchmarks.flow.sets import DESIGNED_ON, SETS
from benchmarks.machine_parts import PARTS
from benchmarks.record import row
from pipelines.base.artifacts import read_json

RESULTS = Path(__file__).resolve().parents[1] / "results" / "flow_density"
LEARNING_RATES, SEEDS = (1e-3, 3e-3, 9e-3), (0, 1, 2)
RATE_STEP, RATE_BOUNDS = 3.0, (1e-4, 3e-2)
"""A sweep goes on by this factor, and not beyond these rates, until its best is inside."""
MAX_STEPS = 12_000
VARIANTS = {f"{OURS}, no {part}": part for part in PARTS}
"""Ours without a part of the machine, which `--parts` compares with it."""
MAX_ROUND_TRIP, MAX_LOG_DET_NATS, MAX_GAP_NATS, MIN_BEST = 1e-5, 1e-5, 0.05, 10

Run = dict[str, Any]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """The runs of one model on one set at its best rate and shape, one per seed."""

    runs: list[Run]

    @property
    def nll_nats_by_seed(self) -> list[float]:
        """Test losses; infinite where one is not finite."""
        return self._values("test_nll_nats")

    @property
    def nll_nats(self) -> float:
        """Mean test loss over seeds; infinite if one is not finite."""
        return mean(self.nll_nats_by_seed)

    @property
    def error_nats(self) -> float:
        """Standard error of the mean over seeds; 0 if one is not finite."""
        values = self.nll_nats_by_seed
        return stdev(values) / len(values) ** 0.5 if max(values) < math.inf else 0.0

    @property
    def is_cut_off(self) -> bool:
        """Whether a run had no step left to improve."""
        return any(run["steps"] >= MAX_STEPS for run in self.runs)

    def worst(self, key: str) -> float:
        """The largest value over seeds."""
        return max(self._values(key))

    def _values(self, key: str) -> list[float]:
        return [math.inf if run[key] is None else float(run[key]) for run in self.runs]


def run_path(name: str, spec: dict[str, Any]) -> Path:
    """Return the file of a run: of its set, model, shape, rate and seed."""
    words = "{model} {shape} {lr:g} {seed}.json".format(**spec).replace(" + ", " ")
    return RESULTS / name.replace(" ", "-") / words.replace(" ", "-")


def read_runs() -> list[Run]:
    """Read all runs."""
    return [read_json(path) for path in sorted(RESULTS.glob("*/*.json"))]


def best(swept: list[Run]) -> Run | None:
    """Return the run of the lowest validation loss; None if no loss is finite."""
    finite = [run for run in swept if run["validation_nll_nats"] is not None]
    return min(finite, key=lambda run: float(run["validation_nll_nats"]), default=None)


def next_rate(swept: list[Run]) -> float | None:
    """Return the rate to try next; None once the best of the usual shape is inside the sweep."""
    usual = [run for run in swept if run["shape"] == USUAL]
    tried = sorted({run["lr"] for run in usual})
    waiting = [lr for lr in LEARNING_RATES if lr not in tried]
    if waiting:
        return waiting[0]
    chosen = best(usual)
    if chosen is None or chosen["lr"] not in (tried[0], tried[-1]):
        return None
    rate = tried[0] / RATE_STEP if chosen["lr"] == tried[0] else tried[-1] * RATE_STEP
    rate = float(f"{rate:.2g}")
    return rate if RATE_BOUNDS[0] <= rate <= RATE_BOUNDS[1] else None


def cells(runs: list[Run], name: str) -> dict[str, Cell]:
    """Return the complete cells of a set by model: a whole sweep, and all seeds of the best."""
    found = {}
    for model in (*MODELS, MIXTURE):
        mine = [run for run in runs if (run["set"], run["model"]) == (name, model)]
        swept = [run for run in mine if run["seed"] == SEEDS[0]]
        shapes = {run["shape"] for run in swept}
        if model != MIXTURE and (next_rate(swept) is not None or shapes != set(SHAPES[model])):
            continue
        if (cell := _cell(mine)) is not None:
            found[model] = cell
    return found


def _cell(mine: list[Run]) -> Cell | None:
    """Return the runs of what was best at the first seed, by seed; None if one is missing."""
    chosen = best([run for run in mine if run["seed"] == SEEDS[0]])
    if chosen is None:
        return None
    same = [r for r in mine if (r["shape"], r["lr"]) == (chosen["shape"], chosen["lr"])]
    same.sort(key=lambda run: int(run["seed"]))
    return Cell(same) if [run["seed"] for run in same] == list(SEEDS) else None


def table(runs: list[Run]) -> Rows:
    """Return the test loss beside every peer's, then the targets."""
    rows: Rows = []
    leads: dict[str, bool] = {}
    for name in SETS:
        found = cells(runs, name)
        if len(found) < len(MODELS) + 1:
            if found:
                rows.append(row(f"{name}: incomplete", len(found), f"of {len(MODELS) + 1} models"))
            continue
        peers = sorted((m for m in found if m != OURS), key=lambda m: found[m].nll_nats)
        leads[name] = all(_is_within(found[OURS], found[peer]) for peer in peers)
        rows += [_loss(name, found, peer, best_peer=peer == peers[0]) for peer in peers]
        rows += _limits(name, found[OURS])
        cut_off = [m for m, cell in found.items() if m != MIXTURE and cell.is_cut_off]
        if cut_off:
            what = f"{name}: not converged after {MAX_STEPS:,} steps: {', '.join(cut_off)}"
            rows.append(row(what, len(cut_off), "models"))
    unseen = {name: lead for name, lead in leads.items() if name not in DESIGNED_ON}
    what = "sets where it is the best, or within a standard error of it"
    num_best = sum(leads.values())
    decided = len(leads) == len(SETS) or num_best >= MIN_BEST
    return [
        *rows,
        row(f"unseen {what}", sum(unseen.values()), f"of {len(unseen)} complete"),
        row(
            what,
            num_best,
            f"of {len(leads)} complete",
            target=f">= {MIN_BEST} of {len(SETS)}",
            met=num_best >= MIN_BEST if decided else None,
        ),
    ]


def part_rows(runs: list[Run]) -> Rows:
    """Return what taking away each part of the machine costs, seed by seed, at the usual shape.

    Ours and each variant have the rate that was best for them on validation at the first seed.
    """
    rows: Rows = []
    for name in SETS:
        ours, *others = (_usual(runs, name, model) for model in (OURS, *VARIANTS))
        for variant, theirs in zip(VARIANTS, others, strict=True):
            if ours is None or theirs is None:
                continue
            pairs = zip(theirs.nll_nats_by_seed, ours.nll_nats_by_seed, strict=True)
            costs = [without - whole for without, whole in pairs]
            title = f"{name}: no {VARIANTS[variant]}"
            rows.append(row(f"{title}, test loss less that of the whole", mean(costs), "nats"))
            rows.append(row(f"{title}, smallest of the seeds", min(costs), "nats"))
            rows.append(row(f"{title}, largest of the seeds", max(costs), "nats"))
    return rows


def _usual(runs: list[Run], name: str, model: str) -> Cell | None:
    """Return a model's runs of the usual shape at its best rate; None before its sweep is over."""
    mine = [r for r in runs if (r["set"], r["model"], r["shape"]) == (name, model, USUAL)]
    swept = [run for run in mine if run["seed"] == SEEDS[0]]
    return _cell(mine) if next_rate(swept) is None else None


def _is_within(ours: Cell, peer: Cell) -> bool:
    """Whether ours is no worse than a peer by more than the peer's standard error."""
    return ours.nll_nats <= peer.nll_nats + peer.error_nats


def _loss(name: str, found: dict[str, Cell], peer: str, *, best_peer: bool) -> dict[str, Any]:
    ours, theirs = found[OURS], found[peer]
    entry = row(
        f"{name}: test loss",
        ours.nll_nats,
        f"± {ours.error_nats:.2g} nats",
        peer=f"{peer} (± {theirs.error_nats:.2g})",
        peer_value=theirs.nll_nats,
        target="lower or within a s.e." if best_peer else None,
        met=_is_within(ours, theirs) if best_peer else None,
    )
    return {**entry, "ratio": None}


def _limits(name: str, ours: Cell) -> Rows:
    rows = []
    for key, what, unit, most in (
        ("round_trip_error", "largest round-trip error", "std", MAX_ROUND_TRIP),
        ("log_det_error_nats", "largest error of a log-determinant", "nats", MAX_LOG_DET_NATS),
    ):
        error = ours.worst(key)
        target = f"<= {most:g}"
        rows.append(row(f"{name}: {what}", error, unit, target=target, met=error <= most))
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
