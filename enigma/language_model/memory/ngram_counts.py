"""Counts of n-grams for interpolated Kneser-Ney smoothing, as a trie of sorted tables.

The counts are those of Kneser-Ney smoothing with three discounts (Chen and Goodman, "An empirical
study of smoothing techniques for language modeling", 1998, sections 2.7 and 3): occurrences at the
highest order n, distinct left neighbours below it. Where a text starts there is no left neighbour;
every start counts as a neighbour of its own. So no n-gram has the count 0, and to take one
occurrence away takes 1 from the longest n-gram that ends there, and 1 from the next shorter one
exactly if that falls to 0. No n-gram crosses the border of a text.

Legend: N texts, L tokens, C classes, n the highest order, M_k n-grams of order k (M_0 = 1).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

__all__ = ["CLASS_BITS", "NGramCounts", "count_ngrams"]

CLASS_BITS = 16
"""A key is the row of an n-gram's prefix in the table below, and its last class in these bits."""
_KINDS = 3
"""Counts of 1, 2 and at least 3 have a discount each."""
_FALLBACK = (0.5, 1.0, 1.5)
"""Discounts of a text too small to estimate them, as KenLM's `--discount_fallback` has them."""


@dataclass(frozen=True)
class NGramCounts:
    """The n-grams of a text: for each order k = 1 ... n, in the sorted order of the keys.

    Args:
        keys: int64 `(M_k,)`, row of the first k - 1 tokens in order k - 1, << 16 | last class.
        counts: int32 `(M_k,)`, at least 1.
        totals: int64 `(M_{k-1},)`, for each row of order k - 1 the counts of all that follows,
            including what was left out to keep the table small.
        discounts: float64 `(n, 3)`, of counts of 1, 2 and at least 3.
        num_classes: C, at most 65,536.
    """

    keys: list[Tensor]
    counts: list[Tensor]
    totals: list[Tensor]
    discounts: Tensor
    num_classes: int

    @property
    def order(self) -> int:
        """The longest n-gram, n."""
        return len(self.keys)

    @classmethod
    def read(cls, path: str | Path) -> NGramCounts:
        """Read a safetensors file with `keys_k`, `counts_k`, `totals_k` and `discounts`.

        Its metadata hold one JSON object, named `ngrams`: of several names, safetensors writes the
        order at random.

        Raises:
            ValueError: if that does not give `order` and `num_classes`.
        """
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("ngrams", "{}"))
            if missing := {"order", "num_classes"} - facts.keys():
                raise ValueError(
                    f"{path}: expected a table of n-grams, got a file without {sorted(missing)} "
                    "in its metadata"
                )
            orders = range(1, int(facts["order"]) + 1)
            keys, counts, totals = (
                [file.get_tensor(f"{name}_{k}") for k in orders]
                for name in ("keys", "counts", "totals")
            )
            discounts = file.get_tensor("discounts")
        return cls(keys, counts, totals, discounts, int(facts["num_classes"]))


def count_ngrams(classes_NL: Tensor, num_classes: int, order: int = 5) -> NGramCounts:
    """Count all n-grams of texts, in memory.

    Args:
        classes_NL: integers `(N, L)`, a text in each row; negative where there is no token.
        num_classes: C. Ids are their own classes, unless the vocabulary has a reachable part.
        order: longest n-gram, n.

    Raises:
        ValueError: for classes of another shape or out of range, more than 65,536 of them, an
            order below 1, or no text of n tokens.

    Examples:
        >>> counts = count_ngrams(torch.tensor([[0, 1, 0, 1, 2]]), num_classes=3, order=2)
        >>> [keys.tolist() for keys in counts.keys]
        [[0, 1, 2], [1, 65536, 65538]]
        >>> [numbers.tolist() for numbers in counts.counts]
        [[2, 1, 1], [2, 1, 1]]
    """
    if not 1 <= num_classes <= 1 << CLASS_BITS:
        raise ValueError(f"num_classes must be from 1 to {1 << CLASS_BITS}, got {num_classes}")
    if classes_NL.numel() and int(classes_NL.max()) >= num_classes:
        raise ValueError(f"expected classes below {num_classes}, got {int(classes_NL.max())}")
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    if classes_NL.ndim != 2:
        raise ValueError(
            f"expected classes of shape (N, L), a text in each row, got {tuple(classes_NL.shape)}"
        )
    classes_NL = classes_NL.long()
    keys: list[Tensor] = []
    counts: list[Tensor] = []
    # The rows of the n-grams of the order below that start at each position; -1 for none.
    row_NS = torch.zeros_like(classes_NL)
    for k in range(1, order + 1):
        last_NS = classes_NL[:, k - 1 :]
        longer_NS = torch.full_like(last_NS, -1)
        prefix_NS = row_NS[:, : last_NS.shape[1]]
        there_NS = (prefix_NS >= 0) & (last_NS >= 0)
        if not bool(there_NS.any()):
            raise ValueError(
                f"expected a text of at least {order} tokens, got none of {k}; to fix this: "
                f"count up to order {k - 1}"
            )
        found, row, number = torch.unique(
            (prefix_NS << CLASS_BITS | last_NS)[there_NS], return_inverse=True, return_counts=True
        )
        longer_NS[there_NS] = row
        if k > 1:
            counts[-1] = _left_neighbours(row_NS, longer_NS, len(keys[-1]), len(found))
        keys.append(found)
        counts.append(number)
        row_NS = longer_NS
    totals = [
        torch.bincount(key >> CLASS_BITS, weights=count, minlength=size).long()
        for key, count, size in zip(keys, counts, [1, *map(len, keys)], strict=False)
    ]
    discounts = torch.stack([_discounts(count) for count in counts])
    return NGramCounts(keys, [count.int() for count in counts], totals, discounts, num_classes)


def _left_neighbours(row_NS: Tensor, longer_NS: Tensor, size: int, num_longer: int) -> Tensor:
    """Count the left neighbours of n-grams, distinct tokens and starts of texts.

    Args:
        row_NS: `(N, S)`, rows of the n-grams that start at each position; -1 for none.
        longer_NS: `(N, S - 1)`, rows of the n-grams that are one token longer.
        size: how many n-grams there are.
        num_longer: how many longer ones.
    """
    suffix_NS = row_NS[:, 1:]
    there_NS = longer_NS >= 0
    # All occurrences of a longer n-gram have the same suffix.
    suffix_M = row_NS.new_empty(num_longer).scatter_(0, longer_NS[there_NS], suffix_NS[there_NS])
    starts = torch.cat((row_NS[:, 0], suffix_NS[~there_NS]))
    distinct = torch.bincount(suffix_M, minlength=size)
    return distinct + torch.bincount(starts[starts >= 0], minlength=size)


def _discounts(count: Tensor) -> Tensor:
    """Return the discounts of an order, `(3,)`: Chen and Goodman (1998), equation 26."""
    n = torch.bincount(count.clamp(max=5), minlength=6)[1:5].double()
    kinds = torch.arange(1, _KINDS + 1, dtype=torch.float64, device=count.device)
    found = kinds - (kinds + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:-1]
    usable = bool((n > 0).all()) and bool((found >= 0).all())
    return found if usable else found.new_tensor(_FALLBACK)
