"""Near-duplicate documents: banded MinHash, verified by true Jaccard similarity.

Banding: Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", ch. 3. Documents that
share a band of their signatures are in one bucket. Signatures and similarity are in
`pipelines/data/cleaning/minhash.py`. Signatures and keys may be on disk: one band is read at a
time, and only the keys of candidates.

The time is linear in the number of documents, even if all are stubs of one template whose
similarity lies just below the bound:

* in a bucket, a document is compared with at most `NEIGHBOURS` others: those next to it in
  the order of other rows of their signatures, so that the most alike are neighbours;
* a pair whose signatures leave open on which side of the bound it is costs more, as its
  shingles are compared: a document may fail `MAX_FAILURES` of these comparisons.

Shape legend: D documents, H hash functions (bands x rows), P pairs, M members of buckets.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.base.run_stage import progress
from pipelines.data.cleaning.clusters import Clusters, Indices
from pipelines.data.cleaning.minhash import Signatures, jaccard_of_pairs, mix
from pipelines.params import NearDuplicateParams

# Keys of documents by their ascending indices, as large strings.
KeysOf = Callable[[Indices], pa.Array]

# Signatures estimate the Jaccard similarity; pairs more than this many standard errors
# below the bound are not verified.
ESTIMATE_SIGMAS = 4.0
PAIRS_PER_BLOCK = 4096
NEIGHBOURS = 8
MAX_FAILURES = 8
NEAR_DUPLICATE = "near duplicate"


class SignatureSource(Protocol):
    """Signatures of D documents, in memory or on disk."""

    num_hashes: int

    def band(self, start: int, stop: int) -> Signatures:
        """(D, stop - start) uint32, some hashes of every document."""

    def rows(self, documents: Indices) -> Signatures:
        """(len(documents), H) uint32, whole signatures."""


@dataclass
class Counts:
    """The work that was done.

    Args:
        compared: Pairs whose signatures were compared.
        verified: Pairs whose shingles were compared.
        joined: Pairs that joined two clusters.
    """

    compared: int = 0
    verified: int = 0
    joined: int = 0


@dataclass
class _Search:
    """What the bands have in common.

    Args:
        signatures: Signatures of D documents.
        keys_of: Returns the keys of candidates.
        params: Shingle length, bands, rows and the bound.
        clusters: The clusters to join, of D documents.
        failures_D: (D,) uint8, the open comparisons that a document failed.
        counts: The work done so far.
    """

    signatures: SignatureSource
    keys_of: KeysOf
    params: NearDuplicateParams
    clusters: Clusters
    failures_D: npt.NDArray[np.uint8]
    counts: Counts = field(default_factory=Counts)


def join_by_signatures(
    signatures: SignatureSource, keys_of: KeysOf, params: NearDuplicateParams, clusters: Clusters
) -> Counts:
    """Join documents by their signatures.

    Pairs that share a band of their signatures are candidates: a pair is found with
    probability 1 - (1 - J^rows)^bands. No pair below the bound is joined.

    Args:
        signatures: Signatures of D documents.
        keys_of: Returns the keys of candidates.
        params: Shingle length, bands, rows and the bound.
        clusters: The clusters to join, of D documents.

    Returns:
        The work done.
    """
    failures_D = np.zeros(len(clusters), np.uint8)
    search = _Search(signatures, keys_of, params, clusters, failures_D)
    for band in progress(range(params.bands), total=params.bands, unit="band", label="near"):
        members, buckets = _buckets(_band(search, band))
        if len(members) == 0:
            continue
        if np.bincount(buckets).max() > NEIGHBOURS + 1:
            rows_MR = _band(search, (band + 1) % params.bands)[members]
            order = np.lexsort((*rows_MR.T, buckets))
            members, buckets = members[order], buckets[order]
        for pairs_P2 in _rounds(members, buckets, clusters):
            _join(pairs_P2, search)
    return search.counts


def _band(search: _Search, band: int) -> Signatures:
    start = band * search.params.rows_per_band
    return search.signatures.band(start, start + search.params.rows_per_band)


def _buckets(rows_DR: Signatures) -> tuple[Indices, Indices]:
    """Find documents that share all rows of a band with another, and number their buckets."""
    keys = np.zeros(len(rows_DR), dtype=np.uint64)
    for row in range(rows_DR.shape[1]):
        keys = mix(keys + rows_DR[:, row])
    # Not stable, which would take three to five times as long: few documents share a bucket.
    order = np.argsort(keys)
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    like_next, like_last = np.append(same, [False]), np.append([False], same)
    shared = (like_next | like_last)[: len(order)]
    members, buckets = order[shared], np.cumsum(~like_last[: len(order)])[shared]
    return members[np.lexsort((members, buckets))], buckets


def _rounds(members: Indices, buckets: Indices, clusters: Clusters) -> Iterator[Indices]:
    """Yield (P, 2) pairs of members of a bucket that are 1, 2, ... `NEIGHBOURS` places apart.

    Pairs in one cluster are left out: a bucket of copies of one text takes one round.
    """
    for distance in range(1, NEIGHBOURS + 1):
        pairs_P2 = np.stack([members[:-distance], members[distance:]], axis=1)
        pairs_P2 = pairs_P2[buckets[:-distance] == buckets[distance:]]
        if len(pairs_P2) == 0:
            return
        yield pairs_P2[clusters.find_all(pairs_P2[:, 0]) != clusters.find_all(pairs_P2[:, 1])]


def _join(pairs_P2: Indices, search: _Search) -> None:
    """Compare the signatures of pairs, then the shingles, and join those above the bound."""
    bound = search.params.min_jaccard
    slack = ESTIMATE_SIGMAS * (bound * (1 - bound) / search.signatures.num_hashes) ** 0.5
    for at in range(0, len(pairs_P2), PAIRS_PER_BLOCK):
        block_P2 = pairs_P2[at : at + PAIRS_PER_BLOCK]
        search.counts.compared += len(block_P2)
        first, second = (search.signatures.rows(documents) for documents in block_P2.T)
        agreement = (first == second).mean(axis=1)
        is_open = agreement < bound + slack
        tired = search.failures_D[block_P2[:, 1]] >= MAX_FAILURES
        likely_P2 = block_P2[(agreement >= bound - slack) & ~(is_open & tired)]
        if len(likely_P2):
            _verify(likely_P2, search)


def _verify(pairs_P2: Indices, search: _Search) -> None:
    documents, indices = np.unique(pairs_P2, return_inverse=True)
    alike = jaccard_of_pairs(
        search.keys_of(documents), indices.reshape(-1, 2), search.params.shingle_characters
    )
    is_near = alike >= search.params.min_jaccard
    search.counts.verified += len(pairs_P2)
    search.counts.joined += search.clusters.join(pairs_P2[is_near], NEAR_DUPLICATE, alike[is_near])
    failed, times = np.unique(pairs_P2[~is_near, 1], return_counts=True)
    search.failures_D[failed] = np.minimum(search.failures_D[failed] + times, MAX_FAILURES)
