"""The speed of generation with the key-value cache and without it.

    OMP_NUM_THREADS=1 python -m benchmarks.enigma.kv_cache       # about ten minutes

The three published sizes, 256 new tokens after 32, greedy, one text, float32. The tokens must be
the same; the peer for scale is GPT2LMHeadModel with its own cache, as wide, with two more layers
instead of the machine.

Then generation with the cache and a reachable vocabulary, against the same model with a logit for
every id, at the three sizes of `benchmarks.enigma.loss_head`.
"""

from functools import partial
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from benchmarks.enigma.decoding import generate
from benchmarks.enigma.loss_head import SIZES, make_pair
from benchmarks.peers import gpt2_config
from benchmarks.record import median_times_s, row, write
from enigma.configuration_enigma import EnigmaConfig
from enigma.language_model.presets import PRESETS
from enigma.modeling_enigma import EnigmaForCausalLM

PROMPT, NEW_TOKENS, REPEATS = 32, 256, 1
TARGET = 5.0


def rows_of(preset: str) -> list[dict[str, Any]]:
    """Check that both ways give the same tokens, and measure."""
    settings = {**PRESETS[preset], "max_len": PROMPT + NEW_TOKENS}
    torch.manual_seed(0)
    model = EnigmaForCausalLM(EnigmaConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    peer = GPT2LMHeadModel(
        gpt2_config(
            settings["vocab_size"],
            settings["d"],
            settings["num_heads"],
            settings["num_transformer_layers"] + 2,
            settings["max_len"],
        )
    ).eval()
    ids = torch.randint(200, settings["vocab_size"], (1, PROMPT))

    fast, slow = (generate(model, ids, NEW_TOKENS, use_cache=use) for use in (True, False))
    if not torch.equal(fast, slow):
        raise ValueError("generation with the cache gives other tokens than without it")
    cached, uncached, gpt2 = (
        NEW_TOKENS / seconds
        for seconds in median_times_s(
            [
                lambda: generate(model, ids, NEW_TOKENS, use_cache=True),
                lambda: generate(model, ids, NEW_TOKENS, use_cache=False),
                lambda: generate(peer, ids, NEW_TOKENS, use_cache=True),
            ],
            REPEATS,
        )
    )
    name = f"{preset}, generate {NEW_TOKENS} tokens, with the cache"
    return [
        row(
            name,
            cached,
            "tokens/s",
            peer="without the cache",
            peer_value=uncached,
            target=f">= {TARGET:g}x",
            met=cached >= TARGET * uncached,
        ),
        row(name, cached, "tokens/s", peer="GPT2LMHeadModel, cached", peer_value=gpt2),
    ]


def row_of_reachable(size: str) -> dict[str, Any]:
    """Measure a size with and without a reachable vocabulary."""
    models = make_pair(size, PROMPT + NEW_TOKENS)
    ids = torch.randint(SIZES[size][-1], (1, PROMPT))
    runs = [partial(generate, model.eval(), ids, NEW_TOKENS, use_cache=True) for model in models]
    ours, full = (NEW_TOKENS / seconds for seconds in median_times_s(runs, 3))
    return row(
        f"{size}, {SIZES[size][-1]:,} ids reachable, generate {NEW_TOKENS} tokens",
        ours,
        "tokens/s",
        peer="every id",
        peer_value=full,
    )


def main() -> None:
    """Measure every published size, print and write."""
    rows = [entry for preset in PRESETS for entry in rows_of(preset)]
    write("kv_cache", rows + [row_of_reachable(size) for size in SIZES])


if __name__ == "__main__":
    main()
