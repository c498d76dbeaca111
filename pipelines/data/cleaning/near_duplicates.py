"""Near-duplicate documents: banded MinHash, verified by true Jaccard similarity.

Banding: Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", ch. 3. Signatures
and similarity are in `pipelines/data/cleaning/minhash.py`. Signatures and texts may be on disk:
one band is read at a time, and only the texts of candidates.

Shape legend: D documents, H hash functions (bands x rows), P pairs.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.base.run_stage import progress
from pipelines.data.cleaning.minhash import Signatures, jaccard_of_pairs, minhash_signatures, mix
from pipelines.data.text.arrays import text_array
from pipelines.params import NearDuplicateParams

Indices = npt.NDArray[np.int64]
# Texts of documents by their ascending indices, as large strings.
TextsOf = Callable[[Indices], pa.Array]

# Signatures estimate the Jaccard similarity; pairs more than this many standard errors
# below the bound are not verified.
ESTIMATE_SIGMAS = 4.0
PAIRS_PER_BLOCK = 4096


class SignatureSource(Protocol):
    """Signatures of D documents, in memory or on disk."""

    num_hashes: int

    def band(self, start: int, stop: int) -> Signatures:
        """(D, stop - start) uint32, some hashes of every document."""

    def rows(self, documents: Indices) -> Signatures:
        """(len(documents), H) uint32, whole signatures."""


class ArraySignatures:
    """Signatures in memory.

    Args:
        signatures_DH: (D, H) uint32.
    """

    def __init__(self, signatures_DH: Signatures) -> None:
        self._signatures_DH = signatures_DH
        self.num_hashes = signatures_DH.shape[1]

    def band(self, start: int, stop: int) -> Signatures:
        """(D, stop - start) uint32, some hashes of every document."""
        return self._signatures_DH[:, start:stop]

    def rows(self, documents: Indices) -> Signatures:
        """(len(documents), H) uint32, whole signatures."""
        return self._signatures_DH[documents]


class UnionFind:
    """Disjoint sets of the integers 0..n-1; the smallest member represents its set.

    Args:
        n: Number of integers; each starts in a set of its own.
    """

    def __init__(self, n: int) -> None:
        self._parent: Indices = np.arange(n, dtype=np.int64)

    def find(self, item: int) -> int:
        """The smallest member of the item's set."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = int(parent[item])
        return item

    def find_all(self, items: Indices) -> Indices:
        """The smallest member of each item's set."""
        roots = self._parent[items]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                self._parent[items] = roots
                return roots
            roots = above

    def union(self, a: int, b: int) -> bool:
        """Join the sets of two items, and return whether they were different sets."""
        low, high = sorted((self.find(a), self.find(b)))
        self._parent[high] = low
        return low != high


def join_near_duplicates(texts: pa.Array, params: NearDuplicateParams, sets: UnionFind) -> int:
    """Join every pair of documents with a Jaccard similarity of at least `min_jaccard`.

    Args:
        texts: D strings.
        params: Shingle length, bands, rows and the bound.
        sets: The sets to join, of D members.

    Returns:
        The number of pairs that were verified and joined two sets.
    """
    array = text_array(texts)
    source = ArraySignatures(minhash_signatures(array, params))
    return join_by_signatures(source, array.take, params, sets)


def join_by_signatures(
    signatures: SignatureSource, texts_of: TextsOf, params: NearDuplicateParams, sets: UnionFind
) -> int:
    """Join documents by their signatures.

    Pairs that share a band of their signatures are candidates: a pair is found with
    probability 1 - (1 - J^rows)^bands. No pair below the bound is joined.

    Args:
        signatures: Signatures of D documents.
        texts_of: Returns the texts of candidates.
        params: Shingle length, bands, rows and the bound.
        sets: The sets to join, of D members.

    Returns:
        The number of pairs that were verified and joined two sets.
    """
    joined = 0
    for band in progress(range(params.bands), total=params.bands, unit="band", label="near"):
        start = band * params.rows_per_band
        members, buckets = _buckets(signatures.band(start, start + params.rows_per_band))
        for pairs_P2 in _rounds(members, buckets, sets):
            likely = _likely(pairs_P2, signatures, params.min_jaccard)
            for at in range(0, len(likely), PAIRS_PER_BLOCK):
                joined += _verify(likely[at : at + PAIRS_PER_BLOCK], texts_of, params, sets)
    return joined


def _buckets(rows_DR: Signatures) -> tuple[Indices, Indices]:
    """Find documents that share all rows of a band with another, and number their buckets."""
    keys = np.zeros(len(rows_DR), dtype=np.uint64)
    for row in range(rows_DR.shape[1]):
        keys = mix(keys + rows_DR[:, row])
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    like_next = np.append(ordered[1:] == ordered[:-1], False)
    like_last = np.append(False, like_next[:-1])
    shared = like_next | like_last
    return order[shared], np.cumsum(~like_last)[shared]


def _rounds(members: Indices, buckets: Indices, sets: UnionFind) -> Iterator[Indices]:
    """Yield (P, 2) pairs of the first member of a bucket with each other member.

    All pairs of a bucket are considered, but a bucket of one template takes one round:
    nothing is left to compare once its members are in one set.
    """
    while len(members):
        roots = sets.find_all(members)
        first = np.flatnonzero(np.append(True, buckets[1:] != buckets[:-1]))
        sizes = np.diff(np.append(first, len(members)))
        is_apart = roots != np.repeat(roots[first], sizes)
        yield np.stack([np.repeat(members[first], sizes), members], axis=1)[is_apart]
        # A member that was joined to the first may still be near to another one: only
        # buckets with a single set are done.
        roots = sets.find_all(members)
        mixed = np.add.reduceat(roots != np.repeat(roots[first], sizes), first) > 0
        left = np.repeat(mixed, sizes)
        left[first] = False
        members, buckets = members[left], buckets[left]


def _likely(pairs_P2: Indices, signatures: SignatureSource, min_jaccard: float) -> Indices:
    """Keep the pairs that their signatures do not rule out."""
    slack = ESTIMATE_SIGMAS * (min_jaccard * (1 - min_jaccard) / signatures.num_hashes) ** 0.5
    kept = [np.empty((0, 2), np.int64)]
    for at in range(0, len(pairs_P2), PAIRS_PER_BLOCK):
        block = pairs_P2[at : at + PAIRS_PER_BLOCK]
        agreement = (signatures.rows(block[:, 0]) == signatures.rows(block[:, 1])).mean(axis=1)
        kept.append(block[agreement >= min_jaccard - slack])
    return np.concatenate(kept)


def _verify(
    pairs_P2: Indices, texts_of: TextsOf, params: NearDuplicateParams, sets: UnionFind
) -> int:
    documents, indices = np.unique(pairs_P2, return_inverse=True)
    alike = jaccard_of_pairs(texts_of(documents), indices.reshape(-1, 2), params.shingle_characters)
    return sum(sets.union(a, b) for a, b in pairs_P2[alike >= params.min_jaccard].tolist())
