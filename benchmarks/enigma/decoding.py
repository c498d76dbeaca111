"""The speed of cached generation against GPT-2 with as many parameters.

    OMP_NUM_THREADS=1 python -m benchmarks.enigma.decoding       # about eight minutes

Three widths, 128 new tokens after 32, greedy, one text, float32, the vocabulary of
bert-base-chinese. GPT-2 has as many layers as bring its parameters closest to Enigma's. Both are
measured in eager mode and with the decoding step compiled over a static cache; compiling is not
measured.
"""

from functools import partial
from typing import Any

import torch
from transformers import CompileConfig, GPT2LMHeadModel

from benchmarks.peers import gpt2_config
from benchmarks.record import best_times_s, row, write
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM

WIDTHS, LAYERS, CHANNELS_PER_HEAD = (256, 384, 512), 6, 64
VOCABULARY, PROMPT, NEW_TOKENS, REPEATS = 21128, 32, 128, 5
TARGET, STIR = 1.0, 0.02


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


def static() -> dict[str, Any]:
    """Return the arguments with which `generate` compiles, on a CPU too."""
    config = CompileConfig()
    config._compile_all_devices = True  # noqa: SLF001 - Enigma sets it, GPT-2 needs to be told
    return {"cache_implementation": "static", "compile_config": config}


def generate(
    model: torch.nn.Module, ids: torch.Tensor, new_tokens: int = NEW_TOKENS, **how: Any
) -> torch.Tensor:
    """Return the prompt and its greedy continuation."""
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **how,
    )


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
    with torch.no_grad():  # in a fresh model the branches are 0, whatever computes them
        for parameter in model.parameters():
            parameter.add_(STIR * torch.randn_like(parameter))
    peer = peer_of(width, size(model))
    ids = torch.randint(200, VOCABULARY, (1, PROMPT))
    runs = [
        partial(generate, which, ids, **how) for how in ({}, static()) for which in (model, peer)
    ]
    # What is compiled for one width only slows down the search for the programs of the next.
    torch.compiler.reset()
    for which, eager, compiled in (("Enigma", *runs[::2]), ("GPT-2", *runs[1::2])):
        if not torch.equal(eager(), compiled()):
            raise RuntimeError(f"{which}: expected the same tokens when compiled, got others")
    ours, theirs, ours_compiled, theirs_compiled = (
        NEW_TOKENS / seconds for seconds in best_times_s(runs, REPEATS)
    )
    best = max(theirs, theirs_compiled)
    name = f"{width} wide, {size(model) / 1e6:.1f} M parameters"
    gpt2 = f"GPT-2, {peer.config.n_layer} layers, {size(peer) / 1e6:.1f} M"
    against = partial(row, unit="tokens/s")
    return [
        against(f"{name}, eager", ours, peer=f"{gpt2}, eager", peer_value=theirs),
        against(f"{name}, compiled", ours_compiled, peer=f"{gpt2}, eager", peer_value=theirs),
        against(
            f"{name}, the faster of both",
            max(ours, ours_compiled),
            peer=f"{gpt2}, the faster of both",
            peer_value=best,
            target=f">= {TARGET:g}x",
            met=max(ours, ours_compiled) >= TARGET * best,
        ),
    ]


def main() -> None:
    """Measure every width, print and write."""
    write("decoding", [entry for width in WIDTHS for entry in rows_of(width)])


if __name__ == "__main__":
    main()
