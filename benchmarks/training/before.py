"""A training step of this code against that of an older commit, on a CPU.

    OMP_NUM_THREADS=1 python -m benchmarks.training.before 9188283      # about five minutes

Two processes, one for each commit, take turns of one step: forward, backward, clipping and Muon
with AdamW, of the 5 M size of `benchmarks.training.speed`, in float32. Both start from one file of
weights and must have the same loss. Processor time, medians.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

from benchmarks.record import row, write
from tests.support import REPOSITORY

TURNS, VOCABULARY, LENGTH, TEXTS = 15, 10118, 256, 8
MEMORY_MODES = ("plain", "reversible")
TOLERANCE_NATS = 1e-4
STEPS = f"""
import pathlib, sys, time
import torch
from torch import nn
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.training.optimisers import make_optimiser

weights = pathlib.Path(sys.argv[1])

def make(memory):
    model = EnigmaForCausalLM(EnigmaConfig(
        vocab_size={VOCABULARY}, d=160, num_heads=5, num_transformer_layers=5, num_rotors=2,
        num_rev_blocks=3, memory=memory,
    ))
    if not weights.exists():
        for parameter in model.parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
        torch.save(model.state_dict(), weights)
    model.load_state_dict(torch.load(weights))
    return model, make_optimiser("muon", model, lr=1e-3, weight_decay=0.01)

made = {{memory: make(memory) for memory in {MEMORY_MODES}}}
ids_BL = (torch.arange({TEXTS * LENGTH}) ** 2 % {VOCABULARY}).view({TEXTS}, {LENGTH})
for model, _ in made.values():
    print(model.eval()(input_ids=ids_BL, labels=ids_BL).loss.item(), flush=True)
    model.train()
for line in sys.stdin:
    model, optimiser = made[line.strip()]
    start_s = time.process_time()
    model(input_ids=ids_BL, labels=ids_BL).loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    print(time.process_time() - start_s, flush=True)
"""


class Checkout:
    """A process that takes steps with the code of a checkout.

    Args:
        checkout: Where the code is.
        weights: Where the weights are, or are to be written by the first checkout.
    """

    def __init__(self, checkout: Path, weights: Path) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", STEPS, str(weights)],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if process.stdin is None or process.stdout is None:
            raise TypeError("expected pipes")
        self._asks, self._answers = process.stdin, process.stdout
        self.losses_nats = [float(self._answers.readline()) for _ in MEMORY_MODES]

    def step(self, memory: str) -> float:
        """Take one step in a memory mode; return its processor seconds."""
        self._asks.write(f"{memory}\n")
        self._asks.flush()
        return float(self._answers.readline())


def main() -> None:
    """Take turns, print and write."""
    commit = sys.argv[1]
    with tempfile.TemporaryDirectory() as directory:
        older, weights = Path(directory, "older"), Path(directory, "weights.pt")
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(older)], check=True)
        subprocess.run(["git", "-C", str(older), "checkout", "--quiet", commit], check=True)
        before, now = Checkout(older, weights), Checkout(REPOSITORY, weights)
        losses = torch.tensor([before.losses_nats, now.losses_nats])
        if float(losses.max() - losses.min()) > TOLERANCE_NATS:
            raise ValueError(f"expected equal losses of both commits, got {losses.tolist()}")
        rows = []
        for memory in MEMORY_MODES:
            turns = [(before.step(memory), now.step(memory)) for _ in range(TURNS)][1:]
            before_ms, now_ms = (1e3 * median(times_s) for times_s in zip(*turns, strict=True))
            rows.append(row(f"step, {memory}", now_ms, "ms", peer=commit, peer_value=before_ms))
        write("before", rows)


if __name__ == "__main__":
    main()
