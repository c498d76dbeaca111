"""The cost of a layer of driven rotors in place of one of attention, and how far its state drifts.

    OMP_NUM_THREADS=1 python -m benchmarks.enigma.driven_rotor       # about two minutes

A model of six layers around the machine, 256 wide, over the 10,118 classes of the Wikipedia sample:
a training step on 8 x 256 tokens, and 128 new tokens after 32 with the cache, float32. Then the
length of a state that 100,000 tokens turn, against that of its start.
"""

from functools import partial
from typing import Any

import torch
from torch.nn import functional

from benchmarks.enigma.decoding import CLASSES, NEW_TOKENS, PROMPT, generate, size
from benchmarks.record import median_times_s, row, write
from enigma.configuration_enigma import EnigmaConfig
from enigma.driven_rotor import turn
from enigma.modeling_enigma import EnigmaForCausalLM

WIDTH, LAYERS, TEXTS, LENGTH = 256, 6, 8, 256
TRAINING_REPEATS, DECODING_REPEATS = 9, 5
MOST_TRAINING, MOST_DECODING = 1.15, 1.1
LONG, CHANNELS, REFLECTIONS, MOST_DRIFT = 100_000, 8, 4, 1e-5


def make(driven: int) -> EnigmaForCausalLM:
    """Make a model with as many layers of driven rotors among its layers."""
    torch.manual_seed(0)
    config = EnigmaConfig(
        vocab_size=CLASSES,
        d=WIDTH,
        num_transformer_layers=LAYERS - driven,
        num_driven_rotors=driven,
        attention_dropout=0.0,
        max_len=LENGTH,
    )
    return EnigmaForCausalLM(config)


def step(model: Any, ids_BL: torch.Tensor) -> None:
    """Compute the loss and its gradients."""
    model(input_ids=ids_BL, labels=ids_BL).loss.backward()
    model.zero_grad()


def drift() -> float:
    """Return the largest relative change of a state's length over a long text, in float32."""
    generator = torch.Generator().manual_seed(0)
    start_BHK = torch.randn(1, 1, CHANNELS, generator=generator)
    u = torch.randn(1, 1, LONG, REFLECTIONS, CHANNELS, generator=generator)
    states = turn(start_BHK, functional.normalize(u, dim=-1))
    return float((states.norm(dim=-1) / start_BHK.norm() - 1).abs().max())


def main() -> None:
    """Measure, print and write."""
    models = {"a driven rotor": make(1), "attention only": make(0)}
    ids_BL = torch.randint(200, CLASSES, (TEXTS, LENGTH))
    steps_s = median_times_s(
        [partial(step, model.train(), ids_BL) for model in models.values()], TRAINING_REPEATS
    )
    decoding_s = median_times_s(
        [partial(generate, model.eval(), ids_BL[:1, :PROMPT]) for model in models.values()],
        DECODING_REPEATS,
    )
    rows = [
        row(f"{name}, parameters without embeddings", size(m), "") for name, m in models.items()
    ]
    for what, (ours, theirs), scale, most in (
        ("training step", steps_s, 1.0, MOST_TRAINING),
        ("a new token", decoding_s, 1.0 / NEW_TOKENS, MOST_DECODING),
    ):
        rows.append(
            row(
                f"{what}, with a driven rotor",
                1000 * scale * ours,
                "ms",
                peer="attention in its place",
                peer_value=1000 * scale * theirs,
                target=f"<= {most}x",
                met=ours <= most * theirs,
            )
        )
    changed = drift()
    name = f"length of a state after up to {LONG:,} tokens, float32"
    rows.append(
        row(name, changed, "relative", target=f"<= {MOST_DRIFT}", met=changed <= MOST_DRIFT)
    )
    write("driven_rotor", rows)


if __name__ == "__main__":
    main()
