"""Text from a causal language model, and how repetitive it is."""

from collections.abc import Sequence
from typing import Any

REPETITION_NGRAM = 4


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    streamer: Any = None,
) -> list[int]:
    """Sample a continuation; no repetition penalty, so that repetition can be seen.

    Args:
        model: An `EnigmaForCausalLM` in evaluation mode.
        tokenizer: The tokenizer published with it.
        prompt: The text to go on with; empty starts a document.
        max_new_tokens: Tokens to add at most; the end of a document ends the text.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Smallest set of tokens with this probability is sampled from.
        seed: Of the sampling.
        streamer: A transformers streamer that is handed tokens as they come.

    Returns:
        The ids of the prompt and of what was added.
    """
    import torch

    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    prompt_1L = torch.tensor([ids], device=model.device)
    choice = {"do_sample": True, "temperature": temperature, "top_p": top_p}
    torch.manual_seed(seed)
    output_1L = model.generate(
        prompt_1L,
        attention_mask=torch.ones_like(prompt_1L),
        max_new_tokens=max_new_tokens,
        streamer=streamer,
        **(choice if temperature > 0 else {"do_sample": False}),
    )
    return [int(token) for token in output_1L[0]]


def readable(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decode, without the spaces that WordPiece puts between Chinese characters."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids), skip_special_tokens=True)
    text = ""
    for piece in pieces:
        if piece.startswith("##"):
            text += piece[2:]
        elif text and text[-1].isascii() and text[-1].isalnum() and piece[:1].isascii():
            text += f" {piece}" if piece[:1].isalnum() else piece
        else:
            text += piece
    return text


def repetition_rate(texts: Sequence[Sequence[int]]) -> float:
    """Share of 4-grams that stood earlier in the same text already; 0 without any.

    Args:
        texts: Token ids of each generated text.
    """
    total = repeated = 0
    for ids in texts:
        grams = _ngrams(ids, REPETITION_NGRAM)
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / total if total else 0.0


def distinct_2(texts: Sequence[Sequence[int]]) -> float:
    """Distinct bigrams over all bigrams (Li et al., 2016); 0 without any."""
    grams = [gram for ids in texts for gram in _ngrams(ids, 2)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
