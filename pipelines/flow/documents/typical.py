"""What is typical of the training text, at every length of a document.

A mean of few states lies farther out than a mean of many, and a loss after few tokens is higher.
So a document shorter than a passage is compared with the beginnings of held-out passages that have
its length. How short it is counts for itself: the rarer documents that short are in the training
text, the more.

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
NORMAL_SPREAD = 1.4826
"""Ratio of standard deviation to median absolute deviation in a normal distribution."""


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

    Args:
        lengths: Tokens, K increasing numbers.
        medians: The median at each.
        spreads: The median absolute deviation at each, scaled to a standard deviation.
    """

    lengths: Sequence[int]
    medians: Sequence[float]
    spreads: Sequence[float]

    @classmethod
    def of(cls, lengths: Sequence[int], values_KP: Floats) -> "Typical":
        """Measure it.

        Raises:
            UserError: If more than half of the values at a length are equal: there is no spread.
        """
        medians_K = np.median(values_KP, axis=1)
        spreads_K = NORMAL_SPREAD * np.median(np.abs(values_KP - medians_K[:, None]), axis=1)
        if not (spreads_K > 0).all():
            raise UserError(
                f"expected held-out passages that differ, got {values_KP.shape[1]} with a spread "
                f"of {spreads_K.min()}",
                "give the split `validation` more documents (params.yaml: clean.split)",
            )
        return cls(lengths, medians_K.tolist(), spreads_K.tolist())

    def deviations(self, values_P: Floats, tokens_P: Counts) -> Floats:
        """Return the distance of values from the median at their length, in spreads.

        Args:
            values_P: Values of passages.
            tokens_P: How long they are; what lies between two lengths is interpolated.
        """
        at, known = np.log(tokens_P), np.log(self.lengths)
        median_P = np.interp(at, known, self.medians)
        deviations: Floats = (values_P - median_P) / np.interp(at, known, self.spreads)
        return deviations


@dataclass(frozen=True)
class TypicalLength:
    """How rare short documents are in the training text.

    Args:
        shares: For 1, 2, ... tokens up to a whole passage, the share of the training documents
            that have at most so many.
    """

    shares: Sequence[float]

    @classmethod
    def of(cls, longest: int, tokens_N: Counts) -> "TypicalLength":
        """Count the training documents; the one that is asked about counts as one more.

        Args:
            longest: Tokens of a passage.
            tokens_N: Tokens of each training document.
        """
        counts_L = np.bincount(tokens_N.clip(0, longest), minlength=longest + 1)
        shares_L = (counts_L.cumsum()[1:] + 1) / (len(tokens_N) + 1)
        return cls(shares_L.tolist())

    def deviations(self, tokens_N: Counts) -> Floats:
        """Return how far documents are below the typical length, in standard deviations.

        The normal quantile of the share of documents that are as short, where it is below 0; 0
        from a whole passage on, where the length says nothing of the mean state.
        """
        whole = len(self.shares)
        shares_N = np.array(self.shares)[tokens_N.clip(1, whole) - 1].clip(max=0.5)
        quantiles_N = np.array([NormalDist().inv_cdf(share) for share in shares_N])
        return np.where(tokens_N < whole, quantiles_N, 0.0)
