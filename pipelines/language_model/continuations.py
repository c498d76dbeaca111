"""Continuations of real texts beside what really follows: how far a model's text is from text.

No figure tells good text from bad, so there are three, each beside that of the real continuations
of the same prompts: repetition, variety, and words. The temperature and top-p are those whose
variety on validation is nearest to that of real text; the page shows texts of test.

Legend: N texts, L tokens of a sequence, P of a prompt, T of a continuation.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from enigma.generation import Sampling, sample_ids
from enigma.language_model.word_pieces import join_word_pieces
from pipelines.base.templates import render
from pipelines.data.order import evenly_spaced
from pipelines.language_model.scoring import batches

Ids = npt.NDArray[np.int64]

MAX_PROMPT_TOKENS = 32
REPETITION_NGRAM = 4
GRID = tuple(itertools.product((0.7, 0.85, 1.0), (0.8, 0.95)))
"""Temperatures and top-p."""
CHOICE_TEXTS = 16
"""Texts per setting: drawing from 21,128 ids takes most of the time of a small model."""
BATCH = 100


def measure_continuations(
    model: Any, tokenizer: Any, sequences: Mapping[str, Ids], *, tokens: int
) -> dict[str, Any]:
    """Choose how to sample on validation, and continue the texts of test.

    Args:
        model: An `EnigmaForCausalLM` in evaluation mode.
        tokenizer: The one published with it.
        sequences: `validation` and `test`, each (N, L); the first half of a sequence, at most
            `MAX_PROMPT_TOKENS`, is the prompt.
        tokens: Tokens to add, at most; no more than follow the prompt.

    Returns:
        `temperature` and `top_p`; the figures `repetition_rate`, `distinct_2` and `word_share`;
        the same of the `real` continuations; and `texts`, one `prompt`, `real` and
        `generated` text for each sequence of test.
    """
    length = sequences["test"].shape[1]
    prompt = min(MAX_PROMPT_TOKENS, length // 2)
    end = min(length, prompt + tokens)
    validation = sequences["validation"]
    choosing = validation[evenly_spaced(len(validation), CHOICE_TEXTS)]
    real = distinct_2(choosing[:, prompt:end])

    def miss(setting: tuple[float, float]) -> float:
        found = _continue_all(model, choosing[:, :prompt], end - prompt, *setting)
        return abs(distinct_2(found) - real)

    temperature, top_p = min(GRID, key=miss)
    shown = sequences["test"]
    generated = _continue_all(model, shown[:, :prompt], end - prompt, temperature, top_p)
    texts = {
        "prompt": _decoded(tokenizer, shown[:, :prompt]),
        "real": _decoded(tokenizer, shown[:, prompt:end]),
        "generated": _decoded(tokenizer, generated),
    }
    return {
        "temperature": temperature,
        "top_p": top_p,
        **figures(generated, texts["generated"]),
        "real": figures(shown[:, prompt:end], texts["real"]),
        "texts": [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)],
    }


def figures(ids: Sequence[Sequence[int]] | Ids, texts: Sequence[str]) -> dict[str, float]:
    """Return the figures of texts, given as ids and as characters."""
    return {
        "repetition_rate": repetition_rate(ids),
        "distinct_2": distinct_2(ids),
        "word_share": word_share(texts),
    }


def repetition_rate(texts: Sequence[Sequence[int]] | Ids) -> float:
    """Share of 4-grams that occur earlier in the same text; 0 if the texts have none.

    Args:
        texts: Token ids of each generated text.
    """
    total = repeated = 0
    for ids in texts:
        grams = _ngrams(ids, REPETITION_NGRAM)
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / total if total else 0.0


def distinct_2(texts: Sequence[Sequence[int]] | Ids) -> float:
    """Distinct bigrams over all bigrams (Li et al., 2016); 0 if the texts have none."""
    grams = [gram for ids in texts for gram in _ngrams(ids, 2)]
    return len(set(grams)) / len(grams) if grams else 0.0


def word_share(texts: Sequence[str]) -> float:
    """Share of Chinese characters in dictionary words of two and more; 0 without characters.

    Args:
        texts: Cut into words by the dictionary of jieba, without its guesses at new words.
    """
    import rjieba

    words = [word for text in texts for word in rjieba.cut(text, hmm=False) if _is_chinese(word)]
    total = sum(map(len, words))
    return sum(len(word) for word in words if len(word) > 1) / total if total else 0.0


def continuations_page(
    title: str, found: Mapping[str, Any], champion: Mapping[str, Any] | None = None
) -> str:
    """Return the texts and figures as one HTML page.

    Args:
        title: Its heading.
        found: What `measure_continuations` returned.
        champion: The same of the champion, or None; its texts are shown where the prompts are the
            same.
    """
    theirs, columns = None, {"this model": found, "real text": found["real"]}
    if champion is not None:
        columns["champion"] = champion
        theirs = {row["prompt"]: row["generated"] for row in champion["texts"]}
    return render(
        "pipelines.language_model",
        "continuations.html.j2",
        title=title,
        found=found,
        columns=columns,
        theirs=theirs,
    )


def _is_chinese(word: str) -> bool:
    return all("\u4e00" <= character <= "\u9fff" for character in word)


def _ngrams(ids: Sequence[int] | Ids, n: int) -> list[tuple[int, ...]]:
    plain = [int(token) for token in ids]
    return [tuple(plain[start : start + n]) for start in range(len(plain) - n + 1)]


def _continue_all(model: Any, prompt_NP: Ids, tokens: int, temperature: float, top_p: float) -> Ids:
    """Return what is added, (N, T); documents may end within it, as they do in real sequences."""
    import torch

    # No top-k, and no penalty that would hide the repetition that is measured.
    sampling = Sampling(tokens, temperature, top_k=0, top_p=top_p)
    texts = [
        sample_ids(model, torch.from_numpy(prompt_NP[rows]), sampling, past_the_end=True).cpu()
        for rows in batches(np.arange(len(prompt_NP)), BATCH)
    ]
    ids: Ids = torch.cat(texts)[:, prompt_NP.shape[1] :].numpy()
    return ids


def _decoded(tokenizer: Any, ids_NL: Ids) -> list[str]:
    return [join_word_pieces(tokenizer, ids.tolist(), skip_special_tokens=True) for ids in ids_NL]
