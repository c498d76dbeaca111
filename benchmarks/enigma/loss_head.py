"""Memory and time of the training loss, against a loss that holds all logits at once.

    OMP_NUM_THREADS=1 python -m benchmarks.enigma.loss_head       # about three minutes

A micro-batch of the profile `wiki-zh`: 12 sequences of 256 tokens, 21,128 entries, 512 wide,
float32, forward and backward. The peer is `F.linear` and `F.cross_entropy`. Each loss runs in a
fresh process, as the peak memory of a process never falls; the loss and both gradients
must agree first.

Then a training step, forward and backward, of 8 x 256 tokens with a reachable vocabulary, against
the same model with a logit for every id, at three sizes: the demo's, 5 and 30 million parameters.
As many ids are reachable as the train split of the novel has (3,584), and as that of the Wikipedia
sample has at least ten times (6,713).
"""

import resource
import subprocess
import sys
import time
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.record import best_times_s, row, write
from enigma.configuration_enigma import EnigmaConfig
from enigma.language_model.training_loss import training_loss
from enigma.model import EnigmaLM
from enigma.modeling_enigma import EnigmaForCausalLM

BATCH, LENGTH, VOCABULARY, WIDTH = 12, 256, 21128, 512
REPEATS = 3
# Width, heads, attention layers, rotors, blocks, reachable ids.
SIZES = {
    "128 wide": (128, 4, 4, 2, 2, 3584),
    "5 M": (160, 5, 5, 2, 3, 6713),
    "30 M": (512, 8, 5, 4, 2, 6713),
}
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
    write("loss_head", rows + [row_of_step(size) for size in SIZES])


def make_pair(size: str, max_len: int) -> tuple[EnigmaForCausalLM, EnigmaForCausalLM]:
    """Make a model with a reachable vocabulary, and one with a logit for every id."""
    width, heads, layers, rotors, blocks, reachable = SIZES[size]
    torch.manual_seed(0)
    first, second = (
        EnigmaForCausalLM(
            EnigmaConfig(
                vocab_size=VOCABULARY,
                d=width,
                num_heads=heads,
                num_transformer_layers=layers,
                num_rotors=rotors,
                num_rev_blocks=blocks,
                max_len=max_len,
                attention_dropout=0.0,
                num_reachable=number,
            )
        )
        for number in (reachable, None)
    )
    return first, second


def row_of_step(size: str) -> dict[str, object]:
    """Measure one size; both models take turns."""
    models = make_pair(size, LENGTH)
    ids = torch.randint(SIZES[size][-1], (8, LENGTH))

    def step(model: EnigmaForCausalLM) -> None:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()

    for model in models:
        model.train()
    ours, full = best_times_s([partial(step, model) for model in models], REPEATS)
    return row(
        f"training step, {size}, {SIZES[size][-1]:,} of {VOCABULARY:,} ids reachable",
        ours,
        "s",
        peer="every id",
        peer_value=full,
    )


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
    model = EnigmaLM(VOCABULARY, WIDTH, num_transformer_layers=0, num_rotors=0, num_rev_blocks=1)
    head = model.head
    nn.init.normal_(head.weight, std=0.02)
    labels = torch.randint(VOCABULARY, (BATCH, LENGTH))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(REPEATS):
        hidden.grad = head.weight.grad = None
        start = time.perf_counter()
        if way == "ours":
            loss = training_loss(hidden, model, labels)
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
