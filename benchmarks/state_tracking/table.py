"""The table and the plot of the jobs of `benchmarks.state_tracking.tracking`.

    python -m benchmarks.state_tracking.table

The files of finished jobs are all it needs. An entrant has a row once both of its rates are done at
seed 0; where seeds are missing, the row says how many there are.
"""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.record import row, write
from benchmarks.state_tracking.tasks import TASKS, TRAINED_LENGTH
from benchmarks.state_tracking.tracking import (
    ENTRANTS,
    RATES,
    SEEDS,
    TESTED_LENGTHS,
    Job,
    best_rate,
    kept,
)
from pipelines.base.run_stage import run_stage

PLOT = Path(__file__).resolve().parents[2] / "docs" / "images" / "state_tracking.png"
TITLES = {
    "a5": "A5, even permutations",
    "s5": "S5, all permutations",
    "flip-flop": "flip-flop",
    "machine": "the historical Enigma",
}
TARGET, SOLVED_AT = 0.99, 256
WITH_A_TARGET = ("a5", "s5", "flip-flop")
OURS, PEERS = "enigma", ("modern", "llama", "gpt2")
COLOURS = {
    "enigma": "#b5482a",
    "enigma, attention only": "#d9a28f",
    "modern": "#3465a4",
    "llama": "#4e9a06",
    "gpt2": "#75507b",
}

Record = dict[str, Any]


def chosen(task: str, entrant: str) -> list[Record]:
    """Return an entrant's records at its better rate, by seed; none before both rates are done."""
    swept = [Job(task, entrant, rate, SEEDS[0]) for rate in RATES]
    if not all(job.path.is_file() for job in swept):
        return []
    rate = best_rate([kept(job) for job in swept])
    jobs = [Job(task, entrant, rate, seed) for seed in SEEDS]
    return [kept(job) for job in jobs if job.path.is_file()]


def rows(task: str, entrant: str, found: list[Record]) -> list[Record]:
    """Make the rows of an entrant: its size, and the share of right answers by length."""
    seeds = "" if len(found) == len(SEEDS) else f" ({len(found)} of {len(SEEDS)} seeds)"
    name = f"{task}, {entrant}{seeds}"
    lines = [
        row(f"{name}, parameters", found[0]["parameters"]["without embeddings"], ""),
        row(f"{name}, learning rate", found[0]["rate"], ""),
        row(
            f"{name}, level reached, worst seed",
            min(record["level"] for record in found),
            "",
            peer="levels",
            peer_value=len(TASKS[task].levels),
        ),
        row(f"{name}, training", statistics.mean(r["processor_s"] for r in found), "s"),
    ]
    for length in TESTED_LENGTHS:
        found_at = shares(found, length)
        what = f"{name}, right at {length}, worst seed"
        lines.append(row(what, min(found_at), "", peer="its best seed", peer_value=max(found_at)))
    return lines


def shares(found: list[Record], length: int) -> list[float]:
    """Return the shares of right answers on texts of a length, by seed."""
    return [record["right"][str(length)] for record in found]


def lead(task: str, entrants: dict[str, list[Record]]) -> Record:
    """Make the row that sets Enigma's worst seed on the longest texts beside any peer's best.

    Args:
        task: Whose.
        entrants: The records of all seeds.
    """
    best = {name: max(shares(found, SOLVED_AT)) for name, found in entrants.items()}
    peer = max((name for name in best if name in PEERS), key=best.__getitem__)
    ours = shares(entrants[OURS], SOLVED_AT)
    judged = task in WITH_A_TARGET
    return row(
        f"{task}, right on texts of {SOLVED_AT}, worst seed",
        min(ours),
        "",
        peer=f"{peer}, best seed",
        peer_value=best[peer],
        target=f">= {TARGET}" if judged else None,
        met=min(ours) >= TARGET if judged else None,
    )


def draw(found: dict[str, dict[str, list[Record]]]) -> None:
    """Draw the share of right answers against the length: the mean of the seeds, and each seed."""
    figure = Figure(figsize=(11, 3.4))
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (task, entrants) in zip(panels, found.items(), strict=True):
        for entrant, records in entrants.items():
            by_length = [shares(records, length) for length in TESTED_LENGTHS]
            for one in zip(*by_length, strict=True):
                axes.plot(TESTED_LENGTHS, one, color=COLOURS[entrant], linewidth=0.5, alpha=0.5)
            mean = [statistics.mean(at_length) for at_length in by_length]
            axes.plot(TESTED_LENGTHS, mean, "o-", color=COLOURS[entrant], label=entrant, ms=3)
        axes.axvline(TRAINED_LENGTH, color="grey", linestyle=":", linewidth=1)
        axes.set(title=TITLES[task], xlabel="length of the text", xscale="log", ylim=(-0.02, 1.02))
        axes.set_xticks(TESTED_LENGTHS, [str(length) for length in TESTED_LENGTHS], minor=False)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="share of right answers")
    lines = {
        name: line
        for panel in panels
        for line, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=len(lines), frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(PLOT, dpi=130)


def main() -> None:
    """Write the table and the plot."""
    found = {
        task: {entrant: records for entrant in ENTRANTS if (records := chosen(task, entrant))}
        for task in TASKS
    }
    found = {task: entrants for task, entrants in found.items() if entrants}
    write(
        "state_tracking",
        [
            line
            for task, entrants in found.items()
            for entrant, records in entrants.items()
            for line in rows(task, entrant, records)
        ],
    )
    complete = {
        task: entrants
        for task, entrants in found.items()
        if all(len(entrants.get(name, [])) == len(SEEDS) for name in (OURS, *PEERS))
    }
    write("state_tracking_lead", [lead(task, entrants) for task, entrants in complete.items()])
    draw(found)


if __name__ == "__main__":
    run_stage(main)
