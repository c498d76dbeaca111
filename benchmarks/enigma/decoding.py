"""The speed of cached generation against GPT-2 with as many parameters.

    OMP_NUM_THREADS=1 python -m benchmarks.enigma.decoding       # about two minutes

Three widths, 128 new tokens after 32, greedy, one text, float32, the vocabulary of
bert-base-chinese. GPT-2 has as many layers as bring its parameters closest to Enigma's.
"""

from typing import Any

import torch
from transformers import GPT2LMHeadModel

from benchmarks.peers import gpt2_config
from benchmarks.record import best_times_s, row, write
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM

WIDTHS, LAYERS, CHANNELS_PER_HEAD = (256, 384, 512), 6, 64
VOCABULARY, PROMPT, NEW_TOKENS, REPEATS = 21128, 32, 128, 5
TARGET = 1.0


def size(model: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def peer_of(width: int, parameters: int) -> GPT2LMHeadModel:
    """Make the GPT-2 whose size is closest to a number of parameters."""
    configs = [
        gpt2_config(VOCABULARY, width, width // CHANNELS_PER_HEAD, layers, PROMPT + NEW_TOKENS)
        for layers in range(LAYERS, 2 * LAYERS)
    ]
    models = [GPT2LMHeadModel(config) for config in configs]
    return min(models, key=lambda model: abs(size(model) - parameters)).eval()


def rows_of(width: int) -> list[dict[str, Any]]:
    """Measure one width."""
    torch.manual_seed(0)
    config = EnigmaConfig(
        vocab_size=VOCABULARY,
        d=width,
        num_heads=width // CHANNELS_PER_HEAD,
        num_transformer_layers=LAYERS,
        max_len=PROMPT + NEW_TOKENS,
    )
    model = EnigmaForCausalLM(config).eval()
    peer = peer_of(width, size(model))
    ids = torch.randint(200, VOCABULARY, (1, PROMPT))

    def generate(which: torch.nn.Module) -> torch.Tensor:
        return which.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )

    ours, theirs = (
        NEW_TOKENS / seconds
        for seconds in best_times_s([lambda: generate(model), lambda: generate(peer)], REPEATS)
    )
    return [
        row(
            f"{width} wide, {size(model) / 1e6:.1f} M parameters, generate {NEW_TOKENS} tokens",
            ours,
            "tokens/s",
            peer=f"GPT-2, {peer.config.n_layer} layers, {size(peer) / 1e6:.1f} M",
            peer_value=theirs,
            target=f">= {TARGET:g}x",
            met=ours >= TARGET * theirs,
        )
    ]


def main() -> None:
    """Measure every width, print and write."""
    write("decoding", [entry for width in WIDTHS for entry in rows_of(width)])


if __name__ == "__main__":
    main()
