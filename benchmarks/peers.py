"""GPT-2 and Llama of transformers, without dropout, as peers of EnigmaLM."""

from collections.abc import Mapping

from transformers import GPT2Config, LlamaConfig

from pipelines.base.errors import UserError

SPECIAL = {"bos_token_id": 101, "eos_token_id": 102, "tie_word_embeddings": True}


def gpt2_config(vocabulary: int, width: int, heads: int, layers: int, length: int) -> GPT2Config:
    """GPT-2 for texts of up to `length` tokens."""
    return GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_head=heads,
        n_layer=layers,
        n_positions=length,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        **SPECIAL,
    )


def llama_config(
    vocabulary: int, width: int, heads: int, layers: int, length: int, *, hidden: int
) -> LlamaConfig:
    """Llama for texts of up to `length` tokens; its networks have three matrices of `hidden`."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        max_position_embeddings=length,
        intermediate_size=hidden,
        attention_dropout=0.0,
        **SPECIAL,
    )


def check_sizes(counts: Mapping[str, int], kind: str) -> None:
    """Check that models have the same size.

    Args:
        counts: Parameters by model.
        kind: Name of the parameters that are counted.

    Raises:
        UserError: If two differ by more than 1 %.
    """
    if max(counts.values()) > 1.01 * min(counts.values()):
        raise UserError(
            f"parameters ({kind}): expected sizes within 1 %, got {dict(counts)}",
            "change the sizes at the top of the benchmark",
        )
