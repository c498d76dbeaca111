"""n-gram baselines on the same tokens: what a model must beat to have learned anything.

Interpolated Kneser-Ney smoothing with a discount for each of the counts 1, 2 and at least 3, the
formula of the model's own memory (`enigma.language_model.memory.ngram_memory`), over the same
classes (`pipelines/language_model/classes.py`) and by the same counting (`counting.py` there).
But nothing is pruned: all of train is counted, out of core, and only what the text to be scored
asks for is kept.

Shape legend: N sequences, L length, P = N * L positions, K longest n-gram.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipelines.base.run_stage import progress
from pipelines.data.shards import ShardReader, Tokens
from pipelines.language_model.classes import TokenClasses
from pipelines.language_model.counting import (
    CLASS_BITS,
    COUNT_KINDS,
    NO_TOKEN,
    Buckets,
    Classes,
    Counts,
    bucketed,
    counts_of_counts,
    discounts,
    kinds_by_prefix,
    sum_by_prefix,
    windows,
)

Floats = npt.NDArray[np.float64]


def ngram_nll_nats(
    train: ShardReader, scored_NL: Tokens, classes: TokenClasses, *, order: int
) -> list[float]:
    """Score a text with the n-gram models of train of every order.

    Args:
        train: The text to count; all of it is.
        scored_NL: (N, L) uint16, the text to score.
        classes: What is counted: the model's own classes.
        order: Longest n-gram, K.

    Returns:
        K sums in nats, from the unigram on, over tokens 1..L-1 of all sequences.
    """
    class_of_id = classes.class_of_id
    blocks = progress(iter(train), total=None, unit="block", label="n-gram windows")
    with bucketed(
        blocks, class_of_id, classes.train_count_C, order, near=train.directory
    ) as buckets:
        counts = ScoredCounts(class_of_id[scored_NL], buckets)
    other = class_of_id[scored_NL[:, 1:]] == classes.num_classes - 1
    spread_nats = float(other.sum() * np.log(classes.num_other))
    return [
        spread_nats - float(np.log(p_NL[:, 1:]).sum())
        for p_NL in counts.probabilities(classes.num_classes)
    ]


class ScoredCounts:
    """The counts of train that the n-grams of one text ask for.

    Args:
        classes_NL: (N, L) uint16, the text.
        buckets: The windows of train; they are counted once.
    """

    def __init__(self, classes_NL: Classes, buckets: Buckets) -> None:
        self._shape = classes_NL.shape
        self._order = buckets.order
        windows_PW = windows(classes_NL, buckets.order)
        size = (len(windows_PW), buckets.order)
        # Both kinds of counts: an order is the highest of one model, and below it in others.
        self._counts = np.zeros((2, *size), dtype=np.int64)
        self._types = np.zeros((2, *size, COUNT_KINDS), dtype=np.int64)
        self._totals = np.zeros((2, *size), dtype=np.int64)
        num_with_count = np.zeros((2, buckets.order, 4), dtype=np.int64)
        shown = progress(buckets, total=len(buckets), unit="bucket", label="n-gram counts")
        for counted in shown:
            self._look_up(counted, windows_PW)
            for k, of_order in enumerate(counted):
                for kind, counts in enumerate((of_order.neighbours, of_order.occurrences)):
                    num_with_count[kind, k] += counts_of_counts(counts)
        self._discounts = np.apply_along_axis(discounts, -1, num_with_count)

    def _look_up(self, counted: list[Counts], windows_PW: Classes) -> None:
        found = np.arange(len(windows_PW))
        row = np.zeros(len(found), dtype=np.int64)
        num_rows = 1
        for k, of_order in enumerate(counted):
            last = windows_PW[found, k]
            for kind, counts in enumerate((of_order.neighbours, of_order.occurrences)):
                of_prefix = (of_order.prefix, counts, num_rows)
                # The first token alone is spread over the buckets.
                self._totals[kind, found, k] += sum_by_prefix(*of_prefix)[row]
                self._types[kind, found, k] += kinds_by_prefix(*of_prefix)[row]
            if not len(of_order):
                break
            key = (row << CLASS_BITS) | last
            place = np.minimum(np.searchsorted(of_order.keys, key), len(of_order) - 1)
            known = (of_order.keys[place] == key) & (last != NO_TOKEN)
            found, row = found[known], place[known]
            self._counts[0, found, k] = of_order.neighbours[row]
            self._counts[1, found, k] = of_order.occurrences[row]
            num_rows = len(of_order)

    def probabilities(self, num_classes: int) -> Iterator[Floats]:
        """Yield the probability of each class of the text, (N, L), by models of rising order."""
        for highest in range(self._order):
            p_NL = np.full(self._shape, 1.0 / num_classes)
            for k in range(min(highest + 1, self._shape[1])):
                ends = p_NL[:, k:]
                ends[:] = self._interpolated(k, int(k == highest), ends)
            yield p_NL

    def _interpolated(self, k: int, kind: int, lower: Floats) -> Floats:
        """Mix order k + 1 with the orders below it, at the ends of its n-grams."""
        import torch

        from enigma.language_model.memory.ngram_memory import Context, interpolate

        num_ends = self._shape[1] - k

        def at_ends(of_starts: npt.NDArray[np.int64]) -> torch.Tensor:
            of_text = of_starts.reshape(*self._shape, *of_starts.shape[1:])
            return torch.from_numpy(of_text[:, :num_ends]).flatten(0, 1)

        total = at_ends(self._totals[kind, :, k])
        context = Context(total, kept=total, kinds=at_ends(self._types[kind, :, k]))
        discount = torch.from_numpy(np.append(0.0, self._discounts[kind, k]))
        seen, rest = interpolate(discount, at_ends(self._counts[kind, :, k]), context)
        return seen.numpy().reshape(lower.shape) + rest.numpy().reshape(lower.shape) * lower
