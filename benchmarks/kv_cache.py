"""How much faster generation is with the key-value cache than without it.

    OMP_NUM_THREADS=1 python -m benchmarks.kv_cache       # about three minutes

The default size (512 wide, 6 layers), 256 new tokens after 32, greedy, one text, float32. The
tokens must be the same; the peer for scale is GPT2LMHeadModel with its own cache, of about the
same size without embeddings.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.record import median_times_s, row, write
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM

VOCABULARY, WIDTH, LAYERS, HEADS = 21128, 512, 6, 8
PROMPT, NEW_TOKENS, REPEATS = 32, 256, 1
TARGET = 5.0


def main() -> None:
    """Check that both ways give the same tokens, measure, print and write."""
    torch.manual_seed(0)
    model = EnigmaForCausalLM(
        EnigmaConfig(
            vocab_size=VOCABULARY,
            d=WIDTH,
            num_transformer_layers=LAYERS,
            num_heads=HEADS,
            max_len=PROMPT + NEW_TOKENS,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    peer = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=LAYERS + 2,
            n_head=HEADS,
            bos_token_id=101,
            eos_token_id=102,
        )
    ).eval()
    ids = torch.randint(200, VOCABULARY, (1, PROMPT))

    def generate(which: torch.nn.Module, *, use_cache: bool) -> torch.Tensor:
        return which.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=None,
            pad_token_id=0,
        )

    fast, slow = generate(model, use_cache=True), generate(model, use_cache=False)
    if not torch.equal(fast, slow):
        raise ValueError("generation with the cache gives other tokens than without it")
    cached, uncached, gpt2 = median_times_s(
        [
            lambda: generate(model, use_cache=True),
            lambda: generate(model, use_cache=False),
            lambda: generate(peer, use_cache=True),
        ],
        REPEATS,
    )
    rate = [NEW_TOKENS / seconds for seconds in (cached, uncached, gpt2)]
    name = f"generate {NEW_TOKENS} tokens, with the cache"
    write(
        "kv_cache",
        [
            row(
                name,
                rate[0],
                "tokens/s",
                peer="without the cache",
                peer_value=rate[1],
                target=f">= {TARGET:g}x",
                met=rate[0] >= TARGET * rate[1],
            ),
            row(name, rate[0], "tokens/s", peer="GPT2LMHeadModel, cached", peer_value=rate[2]),
        ],
    )


if __name__ == "__main__":
    main()
