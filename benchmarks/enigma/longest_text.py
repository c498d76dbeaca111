"""How long a text can be trained in 1 GiB, by plain GPT-2 and by Enigma in reversible mode.

    OMP_NUM_THREADS=1 python -m benchmarks.enigma.longest_text    # about ten minutes

The models of `benchmarks.enigma.memory` at depth 16, without dropout: 256 wide, vocabulary 21,128,
float32, one text. GPT-2 is that of transformers with as many layers as bring its parameters closest
to Enigma's. What counts is the peak of a whole training step, loss included, beyond parameters and
their gradients. GPT-2's longest text is found; Enigma then trains one that is 16 times as long.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.enigma.decoding import peer_of, size
from benchmarks.enigma.memory import HEADS, VOCABULARY, WIDTH, make, peak_bytes, step
from benchmarks.record import row, write

DEPTH, LIMIT_BYTES, TIMES_LONGER = 16, 1 << 30, 16
SHORT = (512, 1024)
"""Texts that the estimate is made from."""
POSITIONS = 4096
"""That GPT-2 has."""


def longest(peak_of: Callable[[int], int]) -> tuple[int, int]:
    """Return the longest text whose peak is within the limit, and its peak.

    Args:
        peak_of: The bytes of a text of so many tokens.
    """
    few, many = (peak_of(length) for length in SHORT)
    per_token = (many - few) / (SHORT[1] - SHORT[0])
    length = SHORT[1] + int((LIMIT_BYTES - many) / per_token)
    while (peak := peak_of(length)) > LIMIT_BYTES:
        length -= 1 + int((peak - LIMIT_BYTES) / per_token)
    return length, peak


def main() -> None:
    """Find the one length, and measure the other."""
    ours = make(DEPTH, "reversible", attention_dropout=0.0)
    peer = peer_of(size(ours), VOCABULARY, WIDTH, HEADS, POSITIONS).train()
    for parameter in peer.parameters():  # what a step adds to is not its peak
        parameter.grad = torch.zeros_like(parameter)

    def peak_of(model: Any, length: int) -> int:
        ids_BL = torch.randint(VOCABULARY, (1, length))
        return peak_bytes(lambda: step(model, ids_BL))

    their_length, their_peak = longest(partial(peak_of, peer))
    our_peak = peak_of(ours, TIMES_LONGER * their_length)
    name = f"GPT-2, {peer.config.n_layer} layers, plain"
    write(
        "longest_text",
        [
            row(f"longest text in 1 GiB, {name}", their_length, "tokens"),
            row(
                f"peak of a text {TIMES_LONGER} times as long, reversible",
                our_peak / 2**20,
                "MiB",
                peer=f"{name}, its longest text",
                peer_value=their_peak / 2**20,
                target="<= 1,024 MiB",
                met=our_peak <= LIMIT_BYTES,
            ),
        ],
    )


if __name__ == "__main__":
    main()
