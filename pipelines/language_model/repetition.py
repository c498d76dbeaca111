"""How repetitive generated texts are."""

from collections.abc import Sequence

REPETITION_NGRAM = 4


def repetition_rate(texts: Sequence[Sequence[int]]) -> float:
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


def distinct_2(texts: Sequence[Sequence[int]]) -> float:
    """Distinct bigrams over all bigrams (Li et al., 2016); 0 if the texts have none."""
    grams = [gram for ids in texts for gram in _ngrams(ids, 2)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
