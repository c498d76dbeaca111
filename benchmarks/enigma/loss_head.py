"""Memory and time of the training loss, against a loss that holds all logits at once.

    OMP_NUM_THREADS=1 python -m benchmarks.enigma.loss_head       # about one minute

A micro-batch of the profile `wiki-zh`: 12 sequences of 256 tokens, 21,128 entries, 512 wide,
float32, forward and backward. The peer is `F.linear` and `F.cross_entropy`. Each loss runs in a
fresh process, as the peak memory of a process never falls; the loss and both gradients
must agree first.
"""

import resource
import subprocess
import sys
import time

import torch
from torch import nn
from torch.nn import functional

from benchmarks.record import row, write
from enigma.language_model.training_loss import training_loss

BATCH, LENGTH, VOCABULARY, WIDTH = 12, 256, 21128, 512
REPEATS = 3
MIB = 2**20
KIB = 1024


def main() -> None:
    """Measure both alternately, check that they agree, print and write."""
    if len(sys.argv) == 2:
        measure(sys.argv[1])
        return
    rows = []
    ours, plain = run("ours"), run("plain")
    for name, one, two in zip(("loss", "gradient norm"), ours, plain, strict=False):
        if abs(one - two) > 1e-5 * abs(two):
            raise ValueError(f"{name}: {one} against {two}")
    for i, name, unit in ((2, "memory above the inputs", "MiB"), (3, "time", "s")):
        rows.append(
            row(
                f"training loss of {BATCH} x {LENGTH} tokens: {name}",
                ours[i],
                unit,
                peer="logits held whole",
                peer_value=plain[i],
            )
        )
    write("loss_head", rows)


def run(way: str) -> list[float]:
    """Measure one loss in a separate process: loss, gradient norm, MiB, seconds."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.enigma.loss_head", way],
        check=True,
        capture_output=True,
        text=True,
    )
    return [float(word) for word in done.stdout.split()]


def measure(way: str) -> None:
    """Print what `run` returns."""
    torch.manual_seed(0)
    hidden = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    nn.init.normal_(head.weight, std=0.02)
    labels = torch.randint(VOCABULARY, (BATCH, LENGTH))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(REPEATS):
        hidden.grad = head.weight.grad = None
        start = time.perf_counter()
        if way == "ours":
            loss = training_loss(hidden, head, labels)
        else:
            logits = functional.linear(hidden, head.weight)[:, :-1].flatten(0, 1)
            loss = functional.cross_entropy(logits, labels[:, 1:].flatten())
        loss.backward()
        times.append(time.perf_counter() - start)
    peak_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * KIB / MIB
    norm = (hidden.grad.square().sum() + head.weight.grad.square().sum()).sqrt()
    print(loss.item(), norm.item(), peak_mib, min(times))


if __name__ == "__main__":
    main()
