"""n-gram baselines on the same tokens: what a model must beat to have learned anything.

Interpolated Kneser-Ney smoothing (Kneser and Ney, "Improved backing-off for m-gram
language modeling", 1995; in the notation of Chen and Goodman, 1998, section 2.7):

    p(w | c) = (max(n(c w) - D, 0) + D * types(c) * p(w | c')) / n(c)

where c' is c without its first token, lower orders count in how many different
contexts an n-gram occurs, and below the unigram is the uniform distribution: every
probability is positive and each distribution sums to one.

An n-gram is identified by a number: the index of (number of its prefix, last token) in a
sorted table. Counting and looking up are therefore sorts and searches over whole arrays,
without hashing. No n-gram crosses a sequence boundary.

Shape legend: N sequences, L length, S start positions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ABSENT = -1


@dataclass(frozen=True)
class _Order:
    """The counts of the n-grams of one order n.

    Args:
        keys: Sorted keys (prefix number << bits | last token) of the n-grams.
        counts: Occurrences (highest order) or distinct left neighbours (below).
        totals: Sum of `counts` for each prefix number.
        types: Distinct last tokens for each prefix number.
        discount: D of this order.
    """

    keys: Integers
    counts: Floats
    totals: Floats
    types: Floats
    discount: float


class NGramModel:
    """An interpolated Kneser-Ney model.

    Args:
        tokens_NL: (N, L) token ids to count.
        order: Longest n-gram; 1 is the unigram.
        vocabulary_size: Number of token ids.
    """

    def __init__(
        self, tokens_NL: npt.NDArray[np.uint16], *, order: int, vocabulary_size: int
    ) -> None:
        self._bits = max(1, (vocabulary_size - 1).bit_length())
        self._vocabulary_size = vocabulary_size
        self._orders: list[_Order] = []
        self._count(tokens_NL.astype(np.int64), order)

    def nll_nats(self, tokens_NL: npt.NDArray[np.uint16]) -> float:
        """Negative log-likelihood of tokens 1..L-1 given those before them.

        Args:
            tokens_NL: (N, L) token ids.

        Returns:
            The sum in nats.
        """
        return float(-np.log(self.probabilities(tokens_NL)[:, 1:]).sum())

    def probabilities(self, tokens_NL: npt.NDArray[np.uint16]) -> Floats:
        """Probability of each token given up to order - 1 tokens before it, (N, L)."""
        ids_NL = tokens_NL.astype(np.int64)
        p_NL = np.full(ids_NL.shape, 1.0 / self._vocabulary_size)
        prefix_NS = np.zeros_like(ids_NL)
        for n, order in enumerate(self._orders, start=1):
            if ids_NL.shape[1] < n:
                break
            number_NS = self._find(order.keys, prefix_NS, ids_NL[:, n - 1 :])
            p_NL[:, n - 1 :] = _interpolate(order, prefix_NS, number_NS, p_NL[:, n - 1 :])
            # The prefixes for the next order; the last n-gram has no successor.
            prefix_NS = number_NS[:, :-1]
        return p_NL

    def _count(self, ids_NL: Integers, order: int) -> None:
        tables: list[tuple[Integers, Integers, Integers]] = []
        prefix_NS = previous_NS = np.zeros_like(ids_NL)
        for n in range(1, order + 1):
            key_NS = (prefix_NS << self._bits) | ids_NL[:, n - 1 :]
            keys, first, number, count = np.unique(
                key_NS, return_index=True, return_inverse=True, return_counts=True
            )
            number_NS = number.reshape(key_NS.shape)
            tables.append((keys, first, count))
            if n > 1:
                # How many different tokens precede each (n-1)-gram.
                row, start = np.divmod(first, key_NS.shape[1])
                suffix = previous_NS[row, start + 1]
                left = np.bincount(suffix, minlength=len(tables[-2][0]))
                tables[-2] = (tables[-2][0], tables[-2][1], left)
            previous_NS = number_NS
            prefix_NS = number_NS[:, :-1]
        self._orders = [self._order(keys, counts) for keys, _, counts in tables]

    def _order(self, keys: Integers, counts: Integers) -> _Order:
        prefix = keys >> self._bits
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        # Ney, Essen and Kneser (1994), the leaving-one-out estimate; bounded for tiny corpora.
        discount = min(0.9, max(0.1, once / max(1, once + 2 * twice)))
        return _Order(
            keys,
            counts.astype(np.float64),
            np.bincount(prefix, weights=counts).astype(np.float64),
            np.bincount(prefix, weights=(counts > 0)).astype(np.float64),
            discount,
        )

    def _find(self, keys: Integers, prefix_NS: Integers, last_NS: Integers) -> Integers:
        """Look up the numbers of n-grams; ABSENT where there is none."""
        key_NS = (prefix_NS << self._bits) | last_NS
        place_NS = np.minimum(np.searchsorted(keys, key_NS), len(keys) - 1)
        found_NS = (keys[place_NS] == key_NS) & (prefix_NS != ABSENT)
        return np.where(found_NS, place_NS, ABSENT)


def _interpolate(
    order: _Order, prefix_NS: Integers, number_NS: Integers, lower_NS: Floats
) -> Floats:
    known_NS = (prefix_NS != ABSENT) & (prefix_NS < len(order.totals))
    prefix_NS = np.where(known_NS, prefix_NS, 0)
    total_NS = np.where(known_NS, order.totals[prefix_NS], 0.0)
    count_NS = np.where(number_NS == ABSENT, 0.0, order.counts[number_NS])
    seen_NS = np.maximum(count_NS - order.discount, 0.0)
    held_back_NS = order.discount * order.types[prefix_NS]
    mixed_NS = (seen_NS + held_back_NS * lower_NS) / np.maximum(total_NS, 1.0)
    # A context that was never seen has no counts: back off to the shorter one.
    return np.where(total_NS > 0.0, mixed_NS, lower_NS)
