"""The speed of cached generation against GPT-2 with as many parameters.

    OMP_NUM_THREADS=1 python -m benchmarks.enigma.decoding       # about twelve minutes

Three widths, 128 new tokens after 32, greedy, one text, float32. GPT-2 has as many layers as bring
its parameters without embeddings closest to Enigma's. It runs twice: with as many classes in its
head as Enigma (those of the Wikipedia sample), and as it comes, over the 21,128 ids of
bert-base-chinese. All are measured in eager mode and with the decoding step compiled over a static
cache; compiling is not measured.
"""

from functools import partial
from typing import Any

import torch
from transformers import CompileConfig, GPT2LMHeadModel

from benchmarks.language_model.entrants import parameters
from benchmarks.peers import gpt2_config
from benchmarks.record import best_times_s, row, write
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM

WIDTHS, LAYERS, CHANNELS_PER_HEAD = (256, 384, 512), 6, 64
VOCABULARY, CLASSES, PROMPT, NEW_TOKENS, REPEATS = 21128, 10118, 32, 128, 5
HEADS = {"same head": CLASSES, "as it comes": VOCABULARY}
TARGET, STIR = 1.0, 0.02


def size(model: torch.nn.Module) -> int:
    """Return the number of parameters without embeddings."""
    return parameters(model)["without embeddings"]


def peer_of(count: int, ids: int, width: int, heads: int, positions: int) -> GPT2LMHeadModel:
    """Make the GPT-2 over `ids` ids whose size is closest to `count` parameters."""

    def made(layers: int) -> GPT2LMHeadModel:
        return GPT2LMHeadModel(gpt2_config(ids, width, heads, layers, positions))

    without = size(made(0))
    return made(round((count - without) / (size(made(1)) - without)))


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
    heads = width // CHANNELS_PER_HEAD
    config = EnigmaConfig(
        vocab_size=CLASSES,
        d=width,
        num_heads=heads,
        num_transformer_layers=LAYERS,
        max_len=PROMPT + NEW_TOKENS,
    )
    model = EnigmaForCausalLM(config).eval()
    with torch.no_grad():  # in a fresh model the branches are 0, whatever computes them
        for parameter in model.parameters():
            parameter.add_(STIR * torch.randn_like(parameter))
    models: dict[str, Any] = {"Enigma": model}
    for head, count in HEADS.items():
        models[head] = peer_of(size(model), count, width, heads, PROMPT + NEW_TOKENS).eval()
    ids = torch.randint(200, CLASSES, (1, PROMPT))
    runs = [
        partial(generate, which, ids, **how) for which in models.values() for how in ({}, static())
    ]
    # What is compiled for one width only slows down the search for the programs of the next.
    torch.compiler.reset()
    for which, eager, compiled in zip(models, runs[::2], runs[1::2], strict=True):
        if not torch.equal(eager(), compiled()):
            raise RuntimeError(f"{which}: expected the same tokens when compiled, got others")
    rates = [NEW_TOKENS / seconds for seconds in best_times_s(runs, REPEATS)]
    ours = max(rates[:2])
    name = f"{width} wide, {size(model) / 1e6:.1f} M parameters"
    rows = [
        row(f"{name}, {how}", rate, "tokens/s")
        for how, rate in zip(("eager", "compiled"), rates[:2], strict=True)
    ]
    for head, slow, fast in zip(HEADS, rates[2::2], rates[3::2], strict=True):
        peer, best = models[head], max(slow, fast)
        rows.append(
            row(
                f"{name}, the faster of both, {head}",
                ours,
                "tokens/s",
                peer=f"GPT-2, {peer.config.n_layer} layers, {size(peer) / 1e6:.1f} M, {head}",
                peer_value=best,
                target=f">= {TARGET:g}x",
                met=ours >= TARGET * best,
            )
        )
    return rows


def main() -> None:
    """Measure every width, print and write."""
    write("decoding", [entry for width in WIDTHS for entry in rows_of(width)])


if __name__ == "__main__":
    main()
