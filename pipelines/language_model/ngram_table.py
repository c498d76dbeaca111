"""The table of counts that the language model carries: `ngrams.safetensors`.

For each order k = 1 ... n, in the sorted order of the keys:

    keys_k     int64 (M_k,)        row of the first k - 1 tokens in order k - 1, << 16 | last token
    counts_k   int32 (M_k,)        occurrences at order n, different left neighbours below
    totals_k   int64 (M_{k-1},)    for each row of order k - 1: the sum of its continuations' counts
    discounts  float64 (n, 3)      the discount of a count of 1, 2 and at least 3

Order 0 has one row. The table is pruned to a size, but totals and discounts are those of all
n-grams. The metadata of the file, one JSON object named `ngrams`, say what was counted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from pipelines.base.errors import UserError
from pipelines.base.run_stage import progress
from pipelines.language_model.counting import (
    CLASS_BITS,
    Buckets,
    Counts,
    Integers,
    counts_of_counts,
    discounts,
    sum_by_prefix,
)

NGRAMS_FILE = "ngrams.safetensors"
FIRST_PRUNED_ORDER = 3
MAX_LEVEL = 1 << 16

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class NGramTable:
    """The content of the file.

    Args:
        tensors: By the names above.
        thresholds: For each order the lowest count that is kept whatever follows it.
        num_counted: For each order how many n-grams there were before pruning.
    """

    tensors: dict[str, npt.NDArray[Any]]
    thresholds: list[int]
    num_counted: list[int]

    @property
    def order(self) -> int:
        """The longest n-gram, n."""
        return len(self.thresholds)

    @property
    def num_entries(self) -> int:
        """The n-grams of all orders."""
        return sum(len(self.tensors[f"keys_{k}"]) for k in range(1, self.order + 1))

    @property
    def sizes(self) -> dict[str, Any]:
        """Order, thresholds and numbers, for manifests."""
        return {
            "order": self.order,
            "thresholds": self.thresholds,
            "counted": self.num_counted,
            "entries": self.num_entries,
        }

    def write(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write the file; `facts` join the sizes in its metadata."""
        # One name only: safetensors writes several in a random order.
        metadata = json.dumps({**facts, **self.sizes}, sort_keys=True)
        save_file(self.tensors, path, {"ngrams": metadata})


def kneser_ney(counted: list[Counts]) -> list[Integers]:
    """The counts that Kneser-Ney smoothing discounts, for each order."""
    return [*(counts.neighbours for counts in counted[:-1]), counted[-1].occurrences]


def make_table(buckets: Buckets, max_entries: int) -> NGramTable:
    """Count the n-grams of buckets, and prune them to a size.

    Pruning raises the lowest count to keep step by step, at each count from the highest order down
    to trigrams, until the rest fits. Prefixes of what is kept are kept. Buckets are
    counted twice, first to find the step, which is faster than keeping all n-grams on disk.

    Args:
        buckets: The windows of a text.
        max_entries: The most n-grams of all orders together.

    Raises:
        UserError: If unigrams and bigrams alone are more.
    """
    survey = _Survey(buckets.order)
    for counted in progress(buckets, total=len(buckets), unit="bucket", label="survey"):
        survey.add(counted)
    level = survey.level(max_entries)
    parts = _Parts(buckets.order)
    for counted in progress(buckets, total=len(buckets), unit="bucket", label="count"):
        parts.add(counted, [levels > level for levels in drop_levels(counted)])
    tensors = parts.joined()
    tensors["discounts"] = np.array([discounts(found) for found in survey.counts_of_counts])
    return NGramTable(tensors, thresholds(buckets.order, level), survey.num_counted)


def drop_levels(counted: list[Counts]) -> list[Integers]:
    """The step of pruning at which each n-gram goes; `MAX_LEVEL` for those that stay.

    Step 1 drops n-grams of the highest order with a count of 1, step 2 those of the order
    below, and so on down to trigrams; then follows a count of 2.
    """
    order = len(counted)
    levels: list[Integers] = []
    for k in range(order, 0, -1):
        counts = kneser_ney(counted)[k - 1]
        if k < FIRST_PRUNED_ORDER:
            levels.append(np.full(len(counts), MAX_LEVEL))
            continue
        steps_per_count = order - FIRST_PRUNED_ORDER + 1
        own = np.minimum((counts - 1) * steps_per_count + order - k + 1, MAX_LEVEL - 1)
        if levels:
            # A prefix stays as long as anything that begins with it.
            np.maximum.at(own, counted[k].prefix, levels[-1])
        levels.append(own)
    return levels[::-1]


def thresholds(order: int, level: int) -> list[int]:
    """For each order the lowest count that a step of pruning keeps."""
    steps_per_count = max(1, order - FIRST_PRUNED_ORDER + 1)
    return [
        1
        if k < FIRST_PRUNED_ORDER
        else (level + steps_per_count - (order - k + 1)) // steps_per_count + 1
        for k in range(1, order + 1)
    ]


@dataclass
class _Survey:
    """What has to be known of all buckets before the first can be pruned."""

    order: int
    num_counted: list[int] = field(init=False)
    counts_of_counts: list[Integers] = field(init=False)

    def __post_init__(self) -> None:
        self.num_counted = [0] * self.order
        self.counts_of_counts = [np.zeros(4, dtype=np.int64) for _ in range(self.order)]
        self._with_level = np.zeros(MAX_LEVEL + 1, dtype=np.int64)

    def add(self, counted: list[Counts]) -> None:
        for k, (counts, levels) in enumerate(
            zip(kneser_ney(counted), drop_levels(counted), strict=True)
        ):
            self.num_counted[k] += len(counts)
            self.counts_of_counts[k] += counts_of_counts(counts)
            self._with_level += np.bincount(levels, minlength=MAX_LEVEL + 1)

    def level(self, max_entries: int) -> int:
        """The first step after which at most so many n-grams are left."""
        left = self._with_level.sum() - np.cumsum(self._with_level)
        if left[MAX_LEVEL - 1] > max_entries:
            raise UserError(
                f"expected at most {max_entries:,} n-grams (count_ngrams.max_entries), got "
                f"{left[MAX_LEVEL - 1]:,} unigrams and bigrams, which are not pruned",
                "raise count_ngrams.max_entries",
            )
        return int((left <= max_entries).argmax())


class _Parts:
    """Joins the n-grams of buckets into one trie."""

    def __init__(self, order: int) -> None:
        self._order = order
        self._parts: dict[str, list[npt.NDArray[Any]]] = {}
        self._num_rows = [0] * (order + 1)
        self._first_total = np.zeros(1, dtype=np.int64)

    def add(self, counted: list[Counts], kept: list[Mask]) -> None:
        """Append the n-grams of a bucket that a mask for each order keeps."""
        # The row in the joined trie of each n-gram of the order below; order 0 has one.
        joined_row = np.zeros(1, dtype=np.int64)
        kept_below = np.ones(1, dtype=np.bool_)
        for k, (counts, mine) in enumerate(zip(kneser_ney(counted), kept, strict=True), start=1):
            prefix = counted[k - 1].prefix
            totals = sum_by_prefix(prefix, counts, len(kept_below))
            if k == 1:
                self._first_total += totals
            else:
                self._append(f"totals_{k}", totals[kept_below])
            keys = (joined_row[prefix[mine]] << CLASS_BITS) | counted[k - 1].last[mine]
            self._append(f"keys_{k}", keys)
            self._append(f"counts_{k}", counts[mine].astype(np.int32))
            joined_row = np.cumsum(mine) - 1 + self._num_rows[k]
            self._num_rows[k] += int(mine.sum())
            kept_below = mine

    def _append(self, name: str, part: npt.NDArray[Any]) -> None:
        self._parts.setdefault(name, []).append(part)

    def joined(self) -> dict[str, npt.NDArray[Any]]:
        """The tensors; the parts are gone afterwards."""
        tensors: dict[str, npt.NDArray[Any]] = {"totals_1": self._first_total}
        for name in [*self._parts]:
            tensors[name] = np.concatenate(self._parts.pop(name))
        return tensors
