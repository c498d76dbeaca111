"""What each part of the machine does for the language model: switch off one at a time.

    python -m benchmarks.language_model.ablation data/wiki-zh/shards --tokens 102400

Enigma as in `quality.py`, with AdamW at one learning rate, three seeds each; the
seed decides the initial weights and the order of the sequences, so runs of one seed are compared.
A part is removed with its parameters, except in the last row, where an attention layer
takes the machine's place. Runs are kept under `runs/lm_ablation/`.
"""

import copy
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.language_model.quality import CONFIGS, arguments_of, kept_in, parameters, run_once
from benchmarks.language_model.quality import make as make_model
from benchmarks.language_model.quality_table import SEEDS, Run, bits
from benchmarks.record import row, write
from enigma.invertible_conv1x1 import InvertibleConv1x1Stack
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.base.run_stage import run_stage

RUNS = Path(__file__).resolve().parents[2] / "runs" / "lm_ablation"
LEARNING_RATE = 3e-3
WHOLE = "as it is"


def without_plugboard(model: EnigmaForCausalLM) -> None:
    """Plug every channel into itself."""
    model.lm.core.plugboard = InvertibleConv1x1Stack(model.lm.d, 0)


def without_reflector(model: EnigmaForCausalLM) -> None:
    """Return the signal unchanged."""
    model.lm.core.reflector = InvertibleConv1x1Stack(model.lm.d, 0)


def without_return_path(model: EnigmaForCausalLM) -> None:
    """Pass through every block once."""
    model.lm.core.return_path = "untied"
    model.lm.core.return_blocks = torch.nn.ModuleList()


def without_plugboard_and_reflector(model: EnigmaForCausalLM) -> None:
    """Remove the two parts that no setting removes."""
    without_plugboard(model)
    without_reflector(model)


def unchanged(model: EnigmaForCausalLM) -> None:
    """Leave the model as its settings define it."""


NO_MACHINE = {"num_rev_blocks": 0, "num_rotors": 0}
Change = Callable[[EnigmaForCausalLM], None]
VARIANTS: dict[str, tuple[dict[str, Any], Change]] = {
    WHOLE: ({}, unchanged),
    "no machine": (NO_MACHINE, without_plugboard_and_reflector),
    "no rotors": ({"num_rotors": 0}, unchanged),
    "static rotors": ({"use_dynamic_conv1x1": False}, unchanged),
    "no reversible blocks": ({"num_rev_blocks": 0}, unchanged),
    "no reflector": ({}, without_reflector),
    "no plugboard": ({}, without_plugboard),
    "no return path": ({}, without_return_path),
    "convolutions of 4 taps": ({"kernel_size": 4}, unchanged),
    "an attention layer in its place": (
        {**NO_MACHINE, "num_transformer_layers": CONFIGS["enigma"].num_transformer_layers + 1},
        without_plugboard_and_reflector,
    ),
}


def make(variant: str, seed: int) -> EnigmaForCausalLM:
    """Make a fresh model of a variant, in training mode."""
    settings, change = VARIANTS[variant]
    config = copy.deepcopy(CONFIGS["enigma"])
    for name, value in settings.items():
        setattr(config, name, value)
    model: EnigmaForCausalLM = make_model("enigma", seed, config)
    change(model)
    return model


def rows_of(
    variant: str, runs: list[dict[str, Any]], whole: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Size, mean over seeds, and the mean and range of the difference per seed."""
    found = [bits(run, "validation") for run in runs]
    differences = [mine - bits(run, "validation") for mine, run in zip(found, whole, strict=True)]
    count = parameters(make(variant, 0))["without embeddings"]
    rows = [
        row(f"{variant}, parameters without embeddings", count, ""),
        row(f"{variant}, validation, mean", statistics.mean(found), "bits/char"),
    ]
    if runs is not whole:
        rows += [
            row(f"{variant}, change, mean", statistics.mean(differences), "bits/char"),
            row(f"{variant}, change, smallest", min(differences), "bits/char"),
            row(f"{variant}, change, largest", max(differences), "bits/char"),
        ]
    return rows


def main() -> None:
    """Train the runs that are not kept yet, seed by seed; then compare."""
    arguments = arguments_of(__doc__)
    runs: dict[str, list[Run]] = {variant: [] for variant in VARIANTS}
    for seed in SEEDS:
        for variant, mine in runs.items():
            spec = {"variant": variant, "optimiser": "adamw", "seed": seed, "lr": LEARNING_RATE}
            directory = kept_in(arguments, RUNS, make(variant, seed).config)
            fresh = partial(make, variant, seed)
            mine.append(run_once(arguments, directory, spec, fresh))
    write(
        "lm_ablation",
        [line for variant, mine in runs.items() for line in rows_of(variant, mine, runs[WHOLE])],
    )


if __name__ == "__main__":
    run_stage(main)
