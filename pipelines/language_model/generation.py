"""Text from a causal language model, and how repetitive it is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

REPETITION_NGRAM = 4


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the names are those of transformers.

    Args:
        max_new_tokens: Tokens to add at most; the end of a document ends the text.
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Sample from so many of the likeliest tokens; 0 for all.
        top_p: Sample from the smallest set of tokens with this probability.
        repetition_penalty: Divides the logits of tokens that were there already; 1 for none.
        seed: Of the sampling.
    """

    max_new_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    seed: int = 0

    def for_turn(self, turn: int) -> "Sampling":
        """The same with a seed of its own for each turn."""
        return replace(self, seed=self.seed + turn)


def generate(
    model: Any, tokenizer: Any, prompt: str, sampling: Sampling, *, streamer: Any = None
) -> list[int]:
    """Sample a continuation.

    Args:
        model: An `EnigmaForCausalLM` in evaluation mode.
        tokenizer: The tokenizer published with it.
        prompt: The text to go on with; empty starts a document. Of a text that is too
            long for the model the end is taken.
        sampling: How.
        streamer: A transformers streamer that is handed tokens as they come.

    Returns:
        The ids of the prompt, as far as it was taken, and of what was added.
    """
    import torch

    prompt_1L = torch.tensor([prompt_ids(model, tokenizer, prompt)], device=model.device)
    choice = {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }
    torch.manual_seed(sampling.seed)
    output_1L = model.generate(
        prompt_1L,
        attention_mask=torch.ones_like(prompt_1L),
        max_new_tokens=sampling.max_new_tokens,
        repetition_penalty=sampling.repetition_penalty,
        streamer=streamer,
        **(choice if sampling.temperature > 0 else {"do_sample": False}),
    )
    return [int(token) for token in output_1L[0]]


def prompt_ids(model: Any, tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a prompt that the model is given.

    Args:
        model: It was trained on texts of `config.max_len` tokens: the last so many are taken.
        tokenizer: The tokenizer published with it.
        prompt: Empty starts a document.
    """
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    return [int(token) for token in ids[-model.config.max_len :]]


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
