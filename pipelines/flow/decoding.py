"""Decoding of states: the tokens that the language model's head predicts from them.

Shape legend: N states, D dimensions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from enigma.language_model.word_pieces import join_word_pieces

SHOWN_TOKENS = 20
STATES_PER_BATCH = 256


@dataclass(frozen=True)
class Decoded:
    """What the head reads from states.

    Args:
        mean_prediction: (V,) float64, the next-token distribution averaged over states.
        entropy_nats: Entropy of the distribution of one state, averaged over states.
        likeliest: (N,) int64, the most probable token of each state.
    """

    mean_prediction: Tensor
    entropy_nats: float
    likeliest: Tensor


def decode(model: Any, states_ND: Tensor) -> Decoded:
    """Read states through the head.

    Args:
        model: An `EnigmaForCausalLM` in evaluation mode.
        states_ND: (N, D) float32.

    Returns:
        Distributions and tokens, on the CPU.
    """
    total_V = torch.zeros(model.config.vocab_size, dtype=torch.float64)
    entropy_nats = 0.0
    likeliest: list[Tensor] = []
    for batch_ND in torch.split(states_ND, STATES_PER_BATCH):
        p_NV = next_token_log_p(model, batch_ND).exp()
        # Summed over a batch in float32: converting all of it costs more than the head.
        total_V += p_NV.sum(dim=0)
        # entr(p) is -p log p, and 0 for an id that cannot occur.
        entropy_nats += float(torch.special.entr(p_NV).sum(dim=-1).double().sum())
        likeliest.append(p_NV.argmax(dim=-1))
    count = len(states_ND)
    return Decoded(total_V / count, entropy_nats / count, torch.cat(likeliest))


def draw_tokens(model: Any, states_ND: Tensor, *, seed: int) -> Tensor:
    """Draw a next token from the distribution of each state, (N,) int64 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        torch.multinomial(next_token_log_p(model, batch_ND).exp(), 1, generator=generator)[:, 0]
        for batch_ND in torch.split(states_ND, STATES_PER_BATCH)
    ]
    return torch.cat(drawn)


@torch.no_grad()
def next_token_log_p(model: Any, states_ND: Tensor) -> Tensor:
    """Return the log probability of every next token in nats, (N, V) float32 on the CPU."""
    logits_NV = model.lm.logits(states_ND.to(model.device))
    log_p_NV: Tensor = logits_NV.float().cpu().log_softmax(dim=-1)
    return log_p_NV


def token_table(tokenizer: Any, columns: dict[str, Tensor]) -> str:
    """Tabulate the most frequent tokens, most frequent first.

    Args:
        tokenizer: The language model's.
        columns: (N,) int64 tokens by title.

    Returns:
        A Markdown table with a title.
    """
    cells = {name: _most_frequent(tokenizer, tokens_N) for name, tokens_N in columns.items()}
    ranks = range(1, max(len(column) for column in cells.values()) + 1)
    rows = table({"rank": [str(rank) for rank in ranks], **cells})
    return f"# Most frequent tokens, decoded through the head\n\n{rows}"


def table(columns: dict[str, list[str]]) -> str:
    """Format columns of cells as a Markdown table; short columns are padded."""
    rows = zip_longest(*columns.values(), fillvalue="")
    lines = [" | ".join(columns), " | ".join("---" for _ in columns), *map(" | ".join, rows)]
    return "".join(f"| {line} |\n" for line in lines)


def _most_frequent(tokenizer: Any, tokens_N: Tensor) -> list[str]:
    counts_V = tokens_N.bincount()
    present = int((counts_V > 0).sum())
    count, ids = counts_V.topk(min(SHOWN_TOKENS, present))
    cells = []
    for token, times in zip(ids.tolist(), count.tolist(), strict=True):
        cells.append(f"{cell(tokenizer, [token])} {times / len(tokens_N):.1%}")
    return cells


def cell(tokenizer: Any, ids: Sequence[int]) -> str:
    """Write tokens for a cell of a Markdown table; special ones only where there are no others."""
    text = join_word_pieces(tokenizer, ids, skip_special_tokens=True)
    return (text or join_word_pieces(tokenizer, ids)).replace("|", "&#124;")
