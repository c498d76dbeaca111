"""What is typical of the training text, at every length of a document.

A mean of few states lies farther out than a mean of many, and a loss after few tokens is higher.
So a document shorter than a passage is compared with the beginnings of held-out passages that have
its length. How short it is counts for itself: the rarer documents that short are in the training
text, the more. Below the shortest of them rarity says nothing more, and every halving counts.

Shape legend: P passages, K lengths, N documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from pipelines.base.errors import UserError

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

SHORTEST = 8
"""Tokens. A mean over fewer says too little: shorter documents are compared at this length."""
TAIL = 0.05
"""A spread reaches from the median to what so small a share of held-out passages exceeds."""
NORMAL_TAIL = -NormalDist().inv_cdf(TAIL)
"""The same of a normal distribution, in standard deviations."""


def lengths_up_to(longest: int) -> tuple[int, ...]:
    """Return the lengths at which passages are compared: powers of two, and the whole passage.

    Examples:
        >>> lengths_up_to(40)
        (8, 16, 32, 40)
    """
    shorter = [2**power for power in range(longest.bit_length()) if SHORTEST <= 2**power < longest]
    return (*shorter, longest)


@dataclass(frozen=True)
class Typical:
    """The typical range of a value over held-out passages, by length.

    Values are skewed: each side of the median has a spread of its own.

    Args:
        lengths: Tokens, K increasing numbers.
        medians: The median at each.
        below: From the median to the lowest twentieth at each, scaled to a standard deviation.
        above: From the median to the highest twentieth at each, in the same way.
    """

    lengths: Sequence[int]
    medians: Sequence[float]
    below: Sequence[float]
    above: Sequence[float]

    @classmethod
    def of(cls, lengths: Sequence[int], values_KP: Sequence[Floats]) -> "Typical":
        """Measure it.

        Args:
            lengths: K increasing numbers of tokens.
            values_KP: The values of held-out passages at each; their number may differ.

        Raises:
            UserError: If the values at a length do not differ: there is no spread.
        """
        low_K, medians_K, high_K = np.transpose(
            [np.quantile(values_P, (TAIL, 0.5, 1 - TAIL)) for values_P in values_KP]
        )
        below_K, above_K = (medians_K - low_K) / NORMAL_TAIL, (high_K - medians_K) / NORMAL_TAIL
        for values_P, spread in zip(values_KP, np.minimum(below_K, above_K), strict=True):
            if not spread > 0:
                raise UserError(
                    f"expected held-out passages that differ, got {len(values_P)} of which nearly "
                    "half have the same value",
                    "give the split `validation` more documents (params.yaml: clean.split)",
                )
        return cls(lengths, medians_K.tolist(), below_K.tolist(), above_K.tolist())

    def deviations(self, values_P: Floats, tokens_P: Counts) -> Floats:
        """Return the distance of values from the median at their length, in spreads.

        Args:
            values_P: Values of passages.
            tokens_P: How long they are; what lies between two lengths is interpolated.
        """
        at, known = np.log(tokens_P), np.log(self.lengths)
        distances_P = values_P - np.interp(at, known, self.medians)
        below_P, above_P = (np.interp(at, known, side) for side in (self.below, self.above))
        return np.where(distances_P < 0, distances_P / below_P, distances_P / above_P)


@dataclass(frozen=True)
class TypicalLength:
    """How rare short documents are in the training text.

    Args:
        shares: For 1, 2, ... tokens up to a whole passage, the share of the training documents
            that have at most so many.
        shortest: Tokens of the shortest training document, or of a whole passage if that is less.
    """

    shares: Sequence[float]
    shortest: int

    @classmethod
    def of(cls, longest: int, tokens_N: Counts) -> "TypicalLength":
        """Count the training documents; the one that is asked about counts as one more.

        Args:
            longest: Tokens of a passage.
            tokens_N: Tokens of each training document.
        """
        clipped_N = tokens_N.clip(1, longest)
        counts_L = np.bincount(clipped_N, minlength=longest + 1)
        shares_L = (counts_L.cumsum()[1:] + 1) / (len(tokens_N) + 1)
        return cls(shares_L.tolist(), int(clipped_N.min()))

    def deviations(self, tokens_N: Counts) -> Floats:
        """Return how far documents are below the typical length, in standard deviations.

        The normal quantile of the share of documents that are as short, where it is below 0, and
        one standard deviation more for every halving below the shortest of them; 0 from a whole
        passage on, where the length says nothing of the mean state.
        """
        whole = len(self.shares)
        shares_N = np.array(self.shares)[tokens_N.clip(1, whole) - 1].clip(max=0.5)
        quantiles_N = np.array([NormalDist().inv_cdf(share) for share in shares_N])
        halvings_N = np.log2(self.shortest / tokens_N.clip(1)).clip(min=0)
        return np.where(tokens_N < whole, quantiles_N - halvings_N, 0.0)
