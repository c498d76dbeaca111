"""The longest text that can be trained in 1 GiB, by Enigma in reversible mode and by plain GPT-2.

    OMP_NUM_THREADS=1 python -m benchmarks.enigma.longest_text    # about a quarter of an hour

The models of `benchmarks.enigma.memory` at depth 16, without dropout: 256 wide, vocabulary 21,128,
float32, one text. GPT-2 is that of transformers with as many layers as bring its parameters closest
to Enigma's. What counts is the peak of a whole training step, loss included, beyond parameters and
their gradients. It grows in proportion to the text: the length is estimated from two short texts,
and then measured.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from benchmarks.enigma.memory import HEADS, VOCABULARY, WIDTH, make, peak_bytes, step
from benchmarks.peers import gpt2_config
from benchmarks.record import row, write

DEPTH, LIMIT_BYTES = 16, 1 << 30
SHORT, CUT = (512, 1024), 64
"""Texts that the estimate is made from, and what every length is a multiple of."""
MIN_RATIO = 16.0
GPT2_LAYERS, GPT2_POSITIONS = range(16, 29), 4096


def parameters(model: Any) -> int:
    """Count the parameters beside the embeddings of tokens and positions."""
    embeddings = sum(p.numel() for name, p in model.named_parameters() if "wpe" in name)
    return sum(p.numel() for p in model.parameters()) - embeddings - VOCABULARY * WIDTH


def gpt2_like(count: int) -> GPT2LMHeadModel:
    """Make the GPT-2 whose size is closest to `count`, in training mode, with gradients."""
    models = [
        GPT2LMHeadModel(gpt2_config(VOCABULARY, WIDTH, HEADS, layers, GPT2_POSITIONS))
        for layers in GPT2_LAYERS
    ]
    model = min(models, key=lambda model: abs(parameters(model) - count))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model.train()


def longest(peak_of: Callable[[int], int]) -> tuple[int, int]:
    """Return the longest text whose peak is within the limit, and its peak.

    Args:
        peak_of: The bytes of a text of so many tokens.
    """
    few, many = (peak_of(length) for length in SHORT)
    per_token = (many - few) / (SHORT[1] - SHORT[0])
    length = SHORT[1] + int((LIMIT_BYTES - many) / per_token)
    length -= length % CUT
    while (peak := peak_of(length)) > LIMIT_BYTES:
        length -= max(CUT, int(1.1 * (peak - LIMIT_BYTES) / per_token) // CUT * CUT)
    return length, peak


def main() -> None:
    """Find both lengths."""
    ours = make(DEPTH, "reversible", attention_dropout=0.0)
    peer = gpt2_like(parameters(ours))
    found = {}
    for name, model in (("Enigma, reversible", ours), ("GPT-2, plain", peer)):

        def peak_of(length: int, model: Any = model) -> int:
            ids_BL = torch.randint(VOCABULARY, (1, length))
            return peak_bytes(lambda: step(model, ids_BL))

        found[name] = longest(peak_of)
        print(f"{name}, {parameters(model):,}: {found[name][0]:,} tokens", flush=True)
    (our_length, our_peak), (their_length, their_peak) = found.values()
    rows = [
        row(
            "longest text trained in 1 GiB, reversible",
            our_length,
            "tokens",
            peer=f"GPT-2, {peer.config.n_layer} layers",
            peer_value=their_length,
            target=f">= {MIN_RATIO:g}x",
            met=our_length >= MIN_RATIO * their_length,
        ),
        row(
            "peak with that text",
            our_peak / 2**20,
            "MiB",
            peer="GPT-2 with its text",
            peer_value=their_peak / 2**20,
        ),
    ]
    write("longest_text", rows)


if __name__ == "__main__":
    main()
