"""GPT-2 and Llama of transformers, without dropout, as peers of EnigmaLM."""

from collections.abc import Mapping

from transformers import GPT2Config, LlamaConfig

from pipelines.base.errors import UserError

SPECIAL = {"bos_token_id": 101, "eos_token_id": 102, "tie_word_embeddings": True}
THEIR_STD = 0.02
"""From which standard deviation transformers draws the weights of both."""


def gpt2_config(
    vocabulary: int, width: int, heads: int, layers: int, length: int, *, std: float = THEIR_STD
) -> GPT2Config:
    """GPT-2 for texts of up to `length` tokens."""
    return GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_head=heads,
        n_layer=layers,
        n_positions=length,
        initializer_range=std,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        **SPECIAL,
    )


def llama_config(
    vocabulary: int,
    width: int,
    heads: int,
    layers: int,
    length: int,
    *,
    hidden: int,
    std: float = THEIR_STD,
) -> LlamaConfig:
    """Llama for texts of up to `length` tokens; its networks have three matrices of `hidden`."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        max_position_embeddings=length,
        intermediate_size=hidden,
        initializer_range=std,
        attention_dropout=0.0,
        **SPECIAL,
    )


def check_sizes(counts: Mapping[str, int], kind: str, tolerance: float = 0.01) -> None:
    """Check that models have the same size.

    Args:
        counts: Parameters by model.
        kind: Name of the parameters that are counted.
        tolerance: How much the largest may exceed the smallest, as a share.

    Raises:
        UserError: If two differ by more.
    """
    if max(counts.values()) > (1 + tolerance) * min(counts.values()):
        raise UserError(
            f"parameters ({kind}): expected sizes within {tolerance:.0%}, got {dict(counts)}",
            "change the sizes at the top of the benchmark",
        )
