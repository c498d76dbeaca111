"""What training makes of the machine's streams, and what float32 then does to its inverse.

    OMP_NUM_THREADS=1 python -m benchmarks.enigma.trained_streams models/wiki-zh/lm \
        data/wiki-zh/shards

Of a published language model, on texts of its test split: how large the streams are that enter and
leave the machine; the relative error of the machine's round trip on them, and on standard normal
streams, which it never sees; and how far the gradients of reversible training, which come from
recomputed streams, are from those of plain training (2-norm over all parameters, and the worst
parameter). The model learns nothing here.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import row, write
from enigma.bijections.round_trip import core_round_trip_error
from enigma.modeling_enigma import EnigmaForCausalLM
from enigma.reversible import MemoryMode
from pipelines.base.run_stage import run_stage
from pipelines.data.order import evenly_spaced
from pipelines.data.shards import ShardReader
from pipelines.language_model.published import load_language_model

TEXTS = 8
MAX_ERROR = 1e-5


def sizes(model: EnigmaForCausalLM, ids_BL: Tensor) -> dict[str, tuple[float, float]]:
    """Return the RMS and the largest number of the streams that enter and leave the machine."""
    found: dict[str, tuple[float, float]] = {}

    def note(name: str, stream: Tensor) -> None:
        found[name] = float(stream.square().mean().sqrt()), float(stream.abs().max())

    with (
        torch.no_grad(),
        model.lm.core.register_forward_pre_hook(lambda _, x: note("entering", x[0])),
        model.lm.core.register_forward_hook(lambda _, __, y: note("leaving", y)),
    ):
        model.lm(ids_BL, head=False)
    return found


def gradients(model: EnigmaForCausalLM, ids_BL: Tensor, memory: MemoryMode) -> dict[str, Tensor]:
    """Return the gradient of every parameter, with the same dropout in every mode."""
    torch.manual_seed(0)
    model.zero_grad()
    model.lm.memory = memory
    model.train()
    model(input_ids=ids_BL, labels=ids_BL).loss.backward()
    model.eval()
    return {
        name: parameter.grad.double()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """Return the relative distance of two sets of gradients, together and of the worst."""
    apart = {name: float((one[name] - other[name]).norm()) for name in other}
    norms = {name: float(grad.norm()) for name, grad in other.items()}
    together = sum(a**2 for a in apart.values()) / sum(n**2 for n in norms.values())
    return {
        "all parameters": together**0.5,
        "the worst parameter": max(a / norms[name] for name, a in apart.items() if norms[name]),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("language_model", type=Path, help="a published one")
    parser.add_argument("shards", type=Path, help="that it was trained on")
    arguments = parser.parse_args()
    model = load_language_model(arguments.language_model)
    reader = ShardReader(arguments.shards, "test")
    ids_BL = torch.from_numpy(reader.gather(evenly_spaced(len(reader), TEXTS)).astype(np.int64))
    rows = []
    for where, (rms, largest) in sizes(model, ids_BL).items():
        rows += [
            row(f"streams {where} the machine, RMS", rms, ""),
            row(f"streams {where} the machine, largest", largest, ""),
        ]
    of_text = core_round_trip_error(model.lm, ids=ids_BL)
    target = f"<= {MAX_ERROR:g}"
    for name, error in (
        ("x to y to x", of_text.float32),
        ("y to x to y", of_text.float32_reversed),
    ):
        met = error <= MAX_ERROR
        rows.append(row(f"streams of text, {name}", error, "relative", target=target, met=met))
    normal = core_round_trip_error(model.lm, reader.sequence_length, batch_size=TEXTS)
    rows += [
        row("standard normal streams, x to y to x", normal.float32, "relative"),
        row("standard normal streams, y to x to y", normal.float32_reversed, "relative"),
    ]
    plain = gradients(model, ids_BL, "plain")
    for name, value in differences(gradients(model, ids_BL, "reversible"), plain).items():
        rows.append(row(f"gradients, reversible from plain, {name}", value, "relative"))
    write("trained_streams", rows)


if __name__ == "__main__":
    run_stage(main)
