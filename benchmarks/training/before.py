"""A training step of this code against that of an older commit, on a CPU.

    OMP_NUM_THREADS=1 python -m benchmarks.training.before 9188283      # about five minutes

Two processes, one for each commit, take turns of one step: forward, backward, clipping and Muon with
AdamW, of the 5 M size of `benchmarks.training.speed`, in float32. Processor time, medians.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import IO

from benchmarks.record import row, write

TURNS, VOCABULARY, LENGTH, TEXTS = 15, 10118, 256, 8
MEMORY_MODES = ("plain", "reversible")
REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = f"""
import sys, time
import torch
from torch import nn
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.training.optimisers import make_optimiser

def made(memory):
    torch.manual_seed(0)
    model = EnigmaForCausalLM(EnigmaConfig(
        vocab_size={VOCABULARY}, d=160, num_heads=5, num_transformer_layers=5, num_rotors=2,
        num_rev_blocks=3, memory=memory,
    )).train()
    return model, make_optimiser("muon", model, lr=1e-3, weight_decay=0.01)

made = {{memory: made(memory) for memory in {MEMORY_MODES}}}
ids_BL = torch.randint({VOCABULARY}, ({TEXTS}, {LENGTH}))
print("ready", flush=True)
for line in sys.stdin:
    model, optimiser = made[line.strip()]
    start_s = time.process_time()
    loss = model(input_ids=ids_BL, labels=ids_BL).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    print(time.process_time() - start_s, loss.item(), flush=True)
"""


def start(checkout: Path) -> tuple[IO[str], IO[str]]:
    """Start the process of a checkout; return where it reads and where it answers."""
    process = subprocess.Popen(
        [sys.executable, "-c", STEPS],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.stdin is None or process.stdout is None or "ready" not in process.stdout.readline():
        raise RuntimeError(f"{checkout}: the process did not start")
    return process.stdin, process.stdout


def step(memory: str, ends: tuple[IO[str], IO[str]]) -> list[float]:
    """Take one step; return its processor seconds, and the loss."""
    ends[0].write(f"{memory}\n")
    ends[0].flush()
    return [float(word) for word in ends[1].readline().split()]


def main() -> None:
    """Take turns, print and write."""
    commit = sys.argv[1]
    with tempfile.TemporaryDirectory() as directory:
        git = ["git", "-C", str(REPOSITORY)]
        subprocess.run([*git, "worktree", "add", "--detach", directory, commit], check=True)
        try:
            both = [start(Path(directory)), start(REPOSITORY)]
            rows = []
            for memory in MEMORY_MODES:
                turns = [[step(memory, ends) for ends in both] for _ in range(TURNS)][1:]
                before_s, now_s = (median(turn[side][0] for turn in turns) for side in (0, 1))
                apart = max(abs(old[1] - new[1]) for old, new in turns)
                rows.append(
                    row(
                        f"step, {memory}", 1e3 * now_s, "ms", peer=commit, peer_value=1e3 * before_s
                    )
                )
                rows.append(row(f"step, {memory}: losses differ by", apart, "nats"))
            write("before", rows)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", directory], check=True)


if __name__ == "__main__":
    main()
