"""The jobs of `benchmarks.language_model.quality`, their table and their plot.

    python -m benchmarks.language_model.quality_table

The files of finished jobs are all it needs. An entrant has a figure on test only when its sweep is
complete: the best rate on validation is inside the grid. Every rate that was tried has a row. Where
seeds are missing, the row says how many there are.
"""

import math
import statistics
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.record import row, write
from pipelines.base.artifacts import read_json
from pipelines.base.run_stage import run_stage

RESULTS = Path(__file__).resolve().parents[1] / "results" / "language_model"
PLOT = Path(__file__).resolve().parents[2] / "docs" / "images" / "lm_quality.png"
SEEDS, RATES = (0, 1, 2), (0.012, 0.006, 0.024)
FULL = "highest"
"""Products in float32."""
COUNTED = {"bigram": 2, "trigram": 3, "4-gram": 4, "5-gram": 5}
OURS, PEER = "enigma", "modern"
OURS_WHOLE = "enigma, memory and pointer"
"""Enigma with all that the pipeline gives it beside the network."""
PEER_MEMORY, PEER_WHOLE = "modern, memory", "modern, memory and pointer"
"""Peers with the same n-gram memory, and with the same pointer too."""
AS_IT_COMES = "modern, all ids"
PARTS = ("validation", "held out", "test")
COLOURS = {
    OURS_WHOLE: "#b5482a",
    OURS: "#d9a28f",
    PEER_WHOLE: "#1d3f66",
    PEER_MEMORY: "#3465a4",
    AS_IT_COMES: "#8fb0d9",
}

STYLES = (":", "-", "--", "-.", (0, (1, 3)))
"""Of the lines, in the order of the settings."""

Result = dict[str, Any]


class Setting(NamedTuple):
    """What the jobs of a table share.

    Attributes:
        size: Of `benchmarks.language_model.entrants.SIZES`.
        tokens: Training tokens.
        bound: Target for Enigma's bits on test, with memory and pointer, as a share of `modern`'s
            as it comes.
        seeds: Of the initial weights and of the order of the sequences.
        products: Precision of matrix products, see `torch.set_float32_matmul_precision`: "medium"
            rounds factors to bfloat16 where the processor multiplies those faster.
    """

    size: str
    tokens: int
    bound: float
    seeds: tuple[int, ...] = SEEDS
    products: str = FULL


SETTINGS = {
    "1M-154k": Setting("1M", 153_600, 0.92),
    "1M-983k": Setting("1M", 983_040, 0.92),
    "2M-983k": Setting("2M", 983_040, 0.92),
    "2M-3.6M": Setting("2M", 3_600_384, 0.94, seeds=(0,)),
    # In float32 a training takes 1.7 times as long, of Enigma as of its peers.
    "10M-983k": Setting("10M", 983_040, 0.96, seeds=(0,), products="medium"),
}
PART_SETTING = "parts"
"""Where Enigma's own parts are compared with one another, over more seeds."""
SETTINGS[PART_SETTING] = SETTINGS["1M-154k"]._replace(seeds=(0, 1, 2, 3, 4))
FEWER_TOKENS = tuple(("1M-154k", "1M-983k", entrant) for entrant in (AS_IT_COMES, "gpt2, all ids"))
"""Where Enigma must have reached the final loss of a peer that reads more: 16 % of its tokens."""
MEMORY_BOUND = 0.97
"""Target for Enigma's bits on test as a share of `modern`'s with the same n-gram memory."""
TARGETED = ((OURS_WHOLE, AS_IT_COMES), (OURS_WHOLE, PEER_MEMORY))
COMPARISONS = (
    *TARGETED,
    (OURS_WHOLE, PEER_WHOLE),
    (OURS_WHOLE, "5-gram"),
    *((OURS, theirs) for theirs in (PEER, AS_IT_COMES, "no machine", "5-gram")),
)
_NAMED = [*COMPARISONS, *((entrant,) for _, _, entrant in FEWER_TOKENS)]
COMPARED = list(dict.fromkeys(name for names in _NAMED for name in names if name not in COUNTED))
"""The entrants that the comparisons name, the strongest peer among them."""


@dataclass(frozen=True)
class Job:
    """One training, or one count of n-grams.

    Args:
        setting: Of `SETTINGS`.
        size: Of the network.
        entrant: Of `benchmarks.language_model.entrants`, or of `COUNTED`.
        rate: Learning rate; 0 for counting.
        seed: Of the initial weights and of the order of the sequences.
        tokens: Training tokens.
    """

    setting: str
    size: str
    entrant: str
    rate: float
    seed: int
    tokens: int


def path_of(job: Job) -> Path:
    """Return the file of a finished job."""
    name = job.entrant.replace(", ", "-").replace(" ", "-")
    return RESULTS / job.setting / f"{name}-{job.rate:g}-{job.seed}.json"


def job_of(result: Result) -> Job:
    """Return the job that a result is of."""
    return Job(**{part.name: result[part.name] for part in fields(Job)})


def results(setting: str) -> list[Result]:
    """Read the finished jobs of a setting, each with its `path`."""
    paths = sorted((RESULTS / setting).glob("*.json"))
    return [{**read_json(path), "path": str(path)} for path in paths]


def bits(result: Result, part: str, *, mixed: bool = False) -> float:
    """Bits per character; infinite for a network whose loss was not finite."""
    scores = result["mixed"]["scores"] if mixed else result["scores"]
    found = scores[part]["bits_per_character"]
    return math.inf if found is None else float(found)


def next_rate(found: list[Result], entrant: str) -> tuple[float | None, float]:
    """Continue the sweep of an entrant at seed 0.

    Returns:
        The rate to try next, None once the best of all is inside the grid; and the best so far.
    """
    tried = {
        float(result["rate"]): bits(result, "validation")
        for result in found
        if result["entrant"] == entrant and result["seed"] == 0
    }
    for rate in RATES:
        if rate not in tried:
            return rate, math.nan
    best = min(tried, key=tried.__getitem__)
    if best == min(tried) or math.isinf(tried[best]):
        return min(tried) / 2, best
    return (best * 2 if best == max(tried) else None), best


def chosen(found: list[Result], entrant: str) -> list[Result]:
    """Return an entrant's results at its best rate, by seed; none before its sweep is over."""
    mine = [result for result in found if result["entrant"] == entrant]
    if entrant not in COUNTED:
        rate, best = next_rate(found, entrant)
        mine = [result for result in mine if result["rate"] == best and rate is None]
    return sorted(mine, key=lambda result: int(result["seed"]))


def mean_bits(cell: list[Result], part: str, *, mixed: bool = False) -> float:
    """Mean bits per character over seeds."""
    return statistics.mean(bits(result, part, mixed=mixed) for result in cell)


def _seeds(setting: str, cell: list[Result]) -> str:
    wanted = len(SETTINGS[setting].seeds)
    return "" if len(cell) == wanted else f" ({len(cell)} of {wanted} seeds)"


def entrant_rows(setting: str, entrant: str, cell: list[Result]) -> list[dict[str, Any]]:
    """Rows of one entrant: its size and rate, its bits, its time."""
    first = cell[0]
    name = f"{setting}, {entrant}{_seeds(setting, cell)}"
    rows = []
    if entrant not in COUNTED:
        count = first["parameters"]["without embeddings"]
        rows.append(row(f"{name}, parameters without embeddings", count, ""))
        rows.append(row(f"{name}, learning rate", first["rate"], ""))
    rows += [row(f"{name}, {part}", mean_bits(cell, part), "bits/char") for part in PARTS]
    if len(cell) > 1:
        found = [bits(result, "test") for result in cell]
        rows.append(row(f"{name}, test, spread", max(found) - min(found), "bits/char"))
    if entrant not in COUNTED:
        if "mixed" in first:
            weight = statistics.mean(result["mixed"]["weight"] for result in cell)
            mixed = mean_bits(cell, "test", mixed=True)
            rows.append(row(f"{name} mixed with the 5-gram, test", mixed, "bits/char"))
            rows.append(row(f"{name}, weight of the 5-gram", weight, ""))
        spent = statistics.mean(result["curve"][-1]["processor_s"] for result in cell)
        rows.append(row(f"{name}, training", spent, "s"))
    return rows


def sweep_rows(setting: str, found: list[Result]) -> list[dict[str, Any]]:
    """Rows of every rate that was tried at seed 0, on validation."""
    return [
        row(
            f"{setting}, {result['entrant']}, rate {result['rate']:g}, seed 0, validation",
            bits(result, "validation"),
            "bits/char",
        )
        for result in sorted(found, key=lambda result: (result["entrant"], result["rate"]))
        if result["entrant"] not in COUNTED and result["seed"] == 0
    ]


def comparison(
    name: str, ours: list[Result], theirs: list[Result], bound: float | None, *, mixed: bool = False
) -> dict[str, Any]:
    """Compare two cells on test, over the seeds that both have; the target is at most `bound`."""
    seeds = {result["seed"] for result in ours} & {result["seed"] for result in theirs}
    value, peer_value = (
        mean_bits([result for result in cell if result["seed"] in seeds], "test", mixed=mixed)
        for cell in (ours, theirs)
    )
    return row(
        name,
        value,
        "bits/char",
        peer=f"{theirs[0]['entrant']} ({len(seeds)} seed{'s' if len(seeds) > 1 else ''})",
        peer_value=peer_value,
        target=None if bound is None else f"<= {bound:g}x",
        met=None if bound is None else value <= bound * peer_value,
    )


def seconds_row(setting: str, ours: list[Result], theirs: list[Result]) -> dict[str, Any]:
    """Compare the processor seconds of training; those of counting are not in it."""
    value, peer_value = (
        statistics.mean(result["curve"][-1]["processor_s"] for result in cell)
        for cell in (ours, theirs)
    )
    peer = theirs[0]["entrant"]
    title = f"{setting}, {ours[0]['entrant']} against {peer}, training"
    return row(title, value, "s", peer=peer, peer_value=peer_value)


def fewer_tokens(found: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """Compare Enigma with peers that read more tokens."""
    rows = []
    for setting, longer, entrant in FEWER_TOKENS:
        cells = chosen(found[setting], OURS_WHOLE), chosen(found[longer], entrant)
        if all(cells):
            title = f"{setting}, {OURS_WHOLE} against {entrant} at {longer}, test"
            rows.append(comparison(title, *cells, 1.0))
    return rows


def table(setting: str, found: list[Result]) -> list[dict[str, Any]]:
    """Make the rows of one setting."""
    entrants = [*COUNTED, *sorted({result["entrant"] for result in found} - set(COUNTED))]
    cells = {entrant: cell for entrant in entrants if (cell := chosen(found, entrant))}
    rows = sweep_rows(setting, found)
    for entrant, cell in cells.items():
        rows += entrant_rows(setting, entrant, cell)
    for ours, theirs in COMPARISONS:
        if ours not in cells or theirs not in cells:
            continue
        bound = SETTINGS[setting].bound if theirs == AS_IT_COMES else MEMORY_BOUND
        at_most = bound if (ours, theirs) in TARGETED else None
        title = f"{setting}, {ours} against {theirs}, test"
        rows.append(comparison(title, cells[ours], cells[theirs], at_most))
        if theirs not in COUNTED:
            rows.append(seconds_row(setting, cells[ours], cells[theirs]))
    if OURS in cells and PEER in cells:
        title = f"{setting}, {OURS} and {PEER}, each mixed with the 5-gram, test"
        rows.append(comparison(title, cells[OURS], cells[PEER], None, mixed=True))
    return rows


def part_rows(found: list[Result]) -> list[dict[str, Any]]:
    """Compare Enigma's parts: a variant's bits on test as a share of Enigma's, seed by seed."""
    rows = sweep_rows(PART_SETTING, found)
    ours = {result["seed"]: result for result in chosen(found, OURS)}
    for entrant in sorted({result["entrant"] for result in found} - {OURS, *COUNTED}):
        pairs = [
            (result, ours[result["seed"]])
            for result in chosen(found, entrant)
            if result["seed"] in ours
        ]
        if not pairs:
            continue
        shares = [bits(theirs, "test") / bits(mine, "test") for theirs, mine in pairs]
        name = f"{entrant}{_seeds(PART_SETTING, [theirs for theirs, _ in pairs])}"
        count = pairs[0][0]["parameters"]["without embeddings"]
        seconds = [
            theirs["curve"][-1]["processor_s"] / mine["curve"][-1]["processor_s"]
            for theirs, mine in pairs
        ]
        rows += [
            row(f"{name}, parameters without embeddings", count, ""),
            row(f"{name}, bits of {OURS}'s, mean", statistics.mean(shares), "x"),
            row(f"{name}, bits of {OURS}'s, smallest", min(shares), "x"),
            row(f"{name}, bits of {OURS}'s, largest", max(shares), "x"),
            row(f"{name}, processor seconds of {OURS}'s, median", statistics.median(seconds), "x"),
        ]
    return rows


def draw(found: dict[str, list[Result]]) -> None:
    """Draw validation loss against tokens and against processor seconds, seed 0 of each cell."""
    if not any(chosen(mine, entrant) for mine in found.values() for entrant in COLOURS):
        return
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    units = (("tokens", 1000, "thousand training tokens"), ("processor_s", 1, "processor seconds"))
    for axes, (key, unit, label) in zip(panels, units, strict=True):
        for (setting, results_of), style in zip(found.items(), STYLES, strict=False):
            for entrant, colour in COLOURS.items():
                for result in chosen(results_of, entrant)[:1]:
                    axes.plot(
                        [point[key] / unit for point in result["curve"]],
                        [point["validation_nats"] for point in result["curve"]],
                        color=colour,
                        linestyle=style,
                        label=f"{entrant}, {setting}",
                    )
        axes.set(xlabel=label, xlim=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="validation loss, nats per token")
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(PLOT, dpi=130)


def main() -> None:
    """Write the table and the plot."""
    found = {setting: results(setting) for setting in SETTINGS}
    write("lm_parts", part_rows(found.pop(PART_SETTING)))
    rows = [line for setting, mine in found.items() for line in table(setting, mine)]
    write("lm_quality", rows + fewer_tokens(found))
    draw(found)


if __name__ == "__main__":
    run_stage(main)
