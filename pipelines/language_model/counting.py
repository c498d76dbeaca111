"""Count the n-grams of token shards out of core, exactly.

Every position of a sequence gives one window: its token, the n - 1 tokens after it, and the token
on its left. Windows are first divided by their first token into buckets on disk, two million in
each, or all of one token that is more frequent: the largest bucket bounds the memory. All
occurrences of an n-gram, with everything on their left, are then in one bucket, so a bucket is
counted by a single sort in memory, for all orders at once, and the buckets in order give sorted
tables.

The counts are those of Kneser-Ney smoothing (Chen and Goodman, "An empirical study of smoothing
techniques for language modeling", 1998, sections 2.7 and 3): occurrences at the highest order,
distinct left neighbours below it. No n-gram crosses the border of a sequence. The start of
a sequence is a neighbour of its own at every occurrence, so no n-gram has the count 0, and taking
one occurrence away takes 1 from the count of an n-gram exactly if that of the next longer one
falls to 0.

Shape legend: N sequences, L length, P positions, W tokens of a window (n + 1), M n-grams.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.base.artifacts import temporary_directory, write_array
from pipelines.data.shards import Tokens

Integers = npt.NDArray[np.int64]
Classes = npt.NDArray[np.uint16]

NO_TOKEN = 0xFFFF
"""Fills a window beyond the ends of its sequence; no class has this number."""
CLASS_BITS = 16
POSITIONS_PER_BUCKET = 2_000_000
COUNT_KINDS = 3
"""Counts of 1, 2 and at least 3 have a discount each."""


@dataclass(frozen=True)
class Counts:
    """The n-grams of one order k whose first token is in one bucket, in sorted order.

    Args:
        prefix: (M,) the row of the first k - 1 tokens among the n-grams of order k - 1.
        last: (M,) uint16, the last token.
        occurrences: (M,).
        neighbours: (M,) distinct tokens on the left, and starts of sequences.
    """

    prefix: Integers
    last: Classes
    occurrences: Integers
    neighbours: Integers

    def __len__(self) -> int:
        return len(self.last)

    @property
    def keys(self) -> Integers:
        """(M,) sorted and different: the row of the prefix and the last token."""
        return (self.prefix << CLASS_BITS) | self.last


def windows(classes_NL: Classes, order: int) -> Classes:
    """Cut sequences into windows.

    Args:
        classes_NL: (N, L) uint16, below `NO_TOKEN`.
        order: Longest n-gram, n.

    Returns:
        (N * L, n + 1) uint16: n tokens from each position on, then the one on their left.
    """
    num_sequences, length = classes_NL.shape
    padded = np.full((num_sequences, length + order), NO_TOKEN, dtype=np.uint16)
    padded[:, 1 : length + 1] = classes_NL
    left_first = np.lib.stride_tricks.sliding_window_view(padded, order + 1, axis=1)
    return np.roll(left_first.reshape(-1, order + 1), -1, axis=1)


class Buckets:
    """Windows on disk, divided by their first token.

    Args:
        directory: Where the files go, one for each bucket.
        num_by_class: (C,) how often each class occurs in the text to come.
        order: Longest n-gram, n.
        positions_per_bucket: Aimed at; a class that occurs more often has a bucket to itself.
    """

    def __init__(
        self,
        directory: Path,
        num_by_class: Integers,
        order: int,
        positions_per_bucket: int = POSITIONS_PER_BUCKET,
    ) -> None:
        before = np.cumsum(num_by_class) - num_by_class
        _, self._bucket_of_class = np.unique(before // positions_per_bucket, return_inverse=True)
        self.order = order
        self._paths = [directory / f"{n:05d}" for n in range(self._bucket_of_class[-1] + 1)]

    def append(self, classes_NL: Classes) -> None:
        """Add the windows of sequences."""
        windows_PW = windows(classes_NL, self.order)
        bucket_P = self._bucket_of_class[windows_PW[:, 0]]
        by_bucket = np.argsort(bucket_P, kind="stable")
        ends = np.cumsum(np.bincount(bucket_P, minlength=len(self._paths)))
        for path, positions in zip(self._paths, np.split(by_bucket, ends[:-1]), strict=True):
            with path.open("ab") as stream:
                write_array(stream, windows_PW[positions])

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[list[Counts]]:
        """Count bucket by bucket; first tokens rise. Yields one `Counts` for each order."""
        for path in self._paths:
            yield count(np.fromfile(path, np.uint16).reshape(-1, self.order + 1))


@contextmanager
def bucketed(
    blocks: Iterable[Tokens],
    class_of_id: Classes,
    num_by_class: Integers,
    order: int,
    *,
    near: Path,
    positions_per_bucket: int = POSITIONS_PER_BUCKET,
) -> Iterator[Buckets]:
    """Divide sequences into buckets; they are deleted at the end.

    Args:
        blocks: Blocks of sequences, (N, L) uint16.
        class_of_id: (V,) the class that each id counts as.
        num_by_class: (C,) how often each class occurs.
        order: Longest n-gram.
        near: A file or directory on the disk to use, see `temporary_directory`: 2 (order + 1)
            bytes per token are written.
        positions_per_bucket: See `Buckets`.
    """
    with temporary_directory(near) as directory:
        buckets = Buckets(directory, num_by_class, order, positions_per_bucket)
        for tokens_NL in blocks:
            buckets.append(class_of_id[tokens_NL])
        yield buckets


def count(windows_PW: Classes) -> list[Counts]:
    """Count the n-grams at the start of windows.

    Args:
        windows_PW: (P, n + 1) uint16, see `windows`.

    Returns:
        One `Counts` for each of the orders 1 to n.
    """
    order = windows_PW.shape[1] - 1
    windows_PW = windows_PW[_sorted_order(windows_PW[:, :order])]
    left_P = windows_PW[:, order]
    prefix_P = np.zeros(len(windows_PW), dtype=np.int64)
    differs_P = np.arange(len(windows_PW)) == 0
    counted = []
    for last_P in windows_PW.T[:order]:
        differs_P[1:] |= last_P[1:] != last_P[:-1]
        # Beyond the end of a sequence there is no n-gram of this order.
        inside_P = last_P != NO_TOKEN
        first_P = differs_P & inside_P
        row_P = np.cumsum(first_P) - 1
        inside_row = row_P[inside_P]
        size = int(first_P.sum())
        counted.append(
            Counts(
                prefix_P[first_P],
                last_P[first_P],
                np.bincount(inside_row, minlength=size),
                _neighbours(inside_row, left_P[inside_P], size),
            )
        )
        prefix_P = row_P
    return counted


def _sorted_order(tokens_PW: Classes) -> Integers:
    """The lexicographic order of rows, four tokens of 16 bits in a word."""
    words = []
    for start in range(0, tokens_PW.shape[1], 4):
        word_P = np.zeros(len(tokens_PW), dtype=np.uint64)
        for token_P in tokens_PW.T[start : start + 4]:
            word_P = (word_P << np.uint64(CLASS_BITS)) | token_P
        words.append(word_P)
    return np.lexsort(words[::-1])


def _neighbours(row: Integers, left: Classes, size: int) -> Integers:
    starts = left == NO_TOKEN
    # Sorting what is nearly sorted takes a fiftieth of the time of `np.unique`, which hashes.
    pairs = np.sort((row[~starts] << CLASS_BITS) | left[~starts])
    different = pairs[np.diff(pairs, prepend=-1) != 0]
    found = np.bincount(different >> CLASS_BITS, minlength=size)
    return found + np.bincount(row[starts], minlength=size)


def sum_by_prefix(prefix: Integers, counts: Integers, size: int) -> Integers:
    """Sum the counts of what follows each prefix.

    Args:
        prefix: (M,) the row of each n-gram's prefix.
        counts: (M,) its count, at least 1.
        size: How many rows there are.

    Returns:
        (size,) sums.
    """
    return np.bincount(prefix, weights=counts, minlength=size).astype(np.int64)


def kinds_by_prefix(prefix: Integers, counts: Integers, size: int) -> Integers:
    """Return (size, 3), how many counts after each prefix are 1, 2 and at least 3.

    Args:
        prefix: See `sum_by_prefix`, as for the others.
        counts: (M,).
        size: How many rows there are.
    """
    kind = np.minimum(counts, COUNT_KINDS) - 1
    kinds = np.bincount(prefix * COUNT_KINDS + kind, minlength=size * COUNT_KINDS)
    return kinds.reshape(size, COUNT_KINDS)


def counts_of_counts(counts: Integers) -> Integers:
    """How many n-grams have the counts 1, 2, 3 and 4, `(4,)`."""
    return np.bincount(np.minimum(counts, 5), minlength=6)[1:5]


def discounts(num_with_count: Integers) -> npt.NDArray[np.float64]:
    """The discounts of counts of 1, 2 and at least 3 (Chen and Goodman, 1998, equation 26).

    Args:
        num_with_count: (4,) how many n-grams have the counts 1 to 4.

    Returns:
        (3,) float64, each at least 0 and below the count. Where the estimate does not exist, as in
        a tiny text, 0.5, 1 and 1.5, as KenLM's `--discount_fallback` has them.
    """
    fallback = np.array([0.5, 1.0, 1.5])
    if (num_with_count <= 0).any():
        return fallback
    n = num_with_count.astype(np.float64)
    scale = n[0] / (n[0] + 2.0 * n[1])
    kinds = np.arange(1.0, COUNT_KINDS + 1)
    found = kinds - (kinds + 1) * scale * n[1:] / n[:-1]
    return np.where((found < 0.0).any(), fallback, found)
