"""The table of `benchmarks.flow.cleaning`: what each way of removing documents is worth."""

import statistics
from typing import Any

from benchmarks.record import row

NOTHING, RANDOM, ORACLE = "nothing", "at random", "the planted ones"
OURS, LOSS, PRIORS = "enigma score", "loss of the LM", "token priors"
WAYS = (NOTHING, RANDOM, PRIORS, LOSS, OURS, ORACLE)
MAX_OF_RANDOM = 0.98
"""Bits per character after removing what `enigma score` finds, as a share of those after removing
at random."""


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over the seeds, and the targets.

    Args:
        runs: Records with `way`, `seed`, `bits_per_character`, `planted_removed`, `sequences`.
    """

    def mean(way: str, name: str = "bits_per_character") -> float:
        return statistics.mean(run[name] for run in runs if run["way"] == way)

    seeds = len({run["seed"] for run in runs})
    rows = [
        row(
            f"removed {way}: bits per character, {seeds} seeds",
            mean(way),
            "",
            peer=f"removed {RANDOM}",
            peer_value=mean(RANDOM),
        )
        for way in WAYS
    ]
    rows += [
        row(f"share of the planted that is removed: {way}", mean(way, "planted_removed"), "")
        for way in (RANDOM, PRIORS, LOSS, OURS)
    ]
    ours = mean(OURS)
    rows.append(
        row(
            f"{OURS} against {RANDOM}",
            ours,
            "bits",
            peer=RANDOM,
            peer_value=mean(RANDOM),
            target=f"<= {MAX_OF_RANDOM:g}x",
            met=ours <= MAX_OF_RANDOM * mean(RANDOM),
        )
    )
    rows += [
        row(
            f"{OURS} against {peer}",
            ours,
            "bits",
            peer=peer,
            peer_value=mean(peer),
            target="<= 1x",
            met=ours <= mean(peer),
        )
        for peer in (LOSS, PRIORS)
    ]
    return rows
