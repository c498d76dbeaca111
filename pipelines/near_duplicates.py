"""Near-duplicate documents: MinHash over character shingles, verified by true Jaccard.

MinHash and banding: Broder, "On the resemblance and containment of documents"
(1997); Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", ch. 3.
Characters, not words: Chinese has no spaces, and word-based tools fail on it.

Shape legend: D documents, H hash functions (bands x rows), S shingles of one document.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipelines.params import NearDuplicateParams
from pipelines.stage import progress

Signatures = npt.NDArray[np.uint32]
Shingles = npt.NDArray[np.uint64]

# Fixed, so that the same text has the same signature in every run.
HASH_SEED = 20_231_101
# Signatures estimate the Jaccard similarity; pairs further than this many standard
# errors below the bound are not looked at again.
ESTIMATE_SIGMAS = 4.0
SHINGLES_A_BLOCK = 2048


class UnionFind:
    """Disjoint sets of the integers 0..n-1; the smallest member represents its set.

    Args:
        n: How many integers, each at first alone.
    """

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def find(self, item: int) -> int:
        """The smallest member of the item's set."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def union(self, a: int, b: int) -> None:
        """Join the sets of two items."""
        low, high = sorted((self.find(a), self.find(b)))
        self._parent[high] = low


def join_near_duplicates(texts: Sequence[str], params: NearDuplicateParams, sets: UnionFind) -> int:
    """Join every pair of documents whose shingles are at least `min_jaccard` alike.

    Pairs become candidates by sharing a band of their signatures, so a pair is
    found with probability 1 - (1 - J^rows)^bands; no pair below the bound is joined.

    Args:
        texts: D documents.
        params: Shingle length, bands, rows and the bound.
        sets: The sets to join, of D members.

    Returns:
        How many pairs were verified and joined two sets.
    """
    signatures_DH = minhash_signatures(texts, params)

    # Members of one bucket follow each other, so a small cache spares most of the work.
    @lru_cache(maxsize=1024)
    def shingle_set(document: int) -> Shingles:
        return np.unique(shingles(texts[document], params.shingle_characters))

    joined = 0
    for bucket in _buckets(signatures_DH, params):
        for a, b in _candidates(bucket, signatures_DH, params.min_jaccard, sets):
            if sets.find(a) == sets.find(b):
                continue
            if jaccard(shingle_set(a), shingle_set(b)) >= params.min_jaccard:
                sets.union(a, b)
                joined += 1
    return joined


def minhash_signatures(texts: Sequence[str], params: NearDuplicateParams) -> Signatures:
    """Compute the MinHash signature of every document.

    Args:
        texts: D documents.
        params: Shingle length, bands and rows; H = bands x rows.

    Returns:
        (D, H) uint32.
    """
    num_hashes = params.bands * params.rows_per_band
    generator = np.random.default_rng(HASH_SEED)
    # x -> a x + b mod 2^32 with odd a is a permutation of the 32-bit integers.
    a_H = generator.integers(2**32, size=num_hashes, dtype=np.uint32) | np.uint32(1)
    b_H = generator.integers(2**32, size=num_hashes, dtype=np.uint32)
    signatures_DH = np.full((len(texts), num_hashes), np.iinfo(np.uint32).max, dtype=np.uint32)
    for document, text in enumerate(
        progress(texts, total=len(texts), unit="document", label="minhash")
    ):
        hashes_S = (shingles(text, params.shingle_characters) >> np.uint64(32)).astype(np.uint32)
        for start in range(0, len(hashes_S), SHINGLES_A_BLOCK):
            block_S = hashes_S[start : start + SHINGLES_A_BLOCK]
            permuted_HS = a_H[:, None] * block_S[None, :] + b_H[:, None]
            np.minimum(
                signatures_DH[document], permuted_HS.min(axis=1), out=signatures_DH[document]
            )
    return signatures_DH


def shingles(text: str, length: int) -> Shingles:
    """Hash every run of `length` characters.

    Args:
        text: The document; one shorter than `length` is a single shingle.
        length: Characters a shingle.

    Returns:
        (S,) uint64 in text order, with repeats.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    num_shingles = max(1, len(points) - length + 1)
    hashes = np.zeros(num_shingles, dtype=np.uint64)
    for offset in range(min(length, len(points))):
        hashes = _mix(hashes + points[offset : offset + num_shingles])
    return hashes


def jaccard(a: Shingles, b: Shingles) -> float:
    """Jaccard similarity of two sets.

    Args:
        a: Sorted, without repeats.
        b: Sorted, without repeats.

    Returns:
        Size of the intersection over size of the union, in [0, 1].
    """
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def _mix(values: Shingles) -> Shingles:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), a bijection."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _buckets(
    signatures_DH: Signatures, params: NearDuplicateParams
) -> Iterator[npt.NDArray[np.intp]]:
    """Yield, band by band, the documents that agree in all rows of the band."""
    for band in range(params.bands):
        start = band * params.rows_per_band
        keys = np.zeros(len(signatures_DH), dtype=np.uint64)
        for row in range(params.rows_per_band):
            keys = _mix(keys + signatures_DH[:, start + row])
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        for bucket in np.split(order, edges):
            if len(bucket) > 1:
                yield bucket


def _candidates(
    bucket: npt.NDArray[np.intp], signatures_DH: Signatures, min_jaccard: float, sets: UnionFind
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of a bucket that may be alike and are not in one set yet.

    All pairs are considered, but a big bucket of one template costs one pass:
    once its members are in one set, nothing is left to compare.
    """
    num_hashes = signatures_DH.shape[1]
    slack = ESTIMATE_SIGMAS * (min_jaccard * (1 - min_jaccard) / num_hashes) ** 0.5
    for index, first in enumerate(bucket[:-1]):
        others = bucket[index + 1 :]
        roots = np.array([sets.find(int(other)) for other in others])
        others = others[roots != sets.find(int(first))]
        agreement = (signatures_DH[others] == signatures_DH[first]).mean(axis=1)
        for other in others[agreement >= min_jaccard - slack]:
            yield int(first), int(other)
