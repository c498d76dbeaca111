"""Documents of one title: joined if their content shows that they belong together.

Passages of one article often are documents of their own, with its title, and must stay in one
split; but a placeholder (无标题, Untitled, 首页, 新闻) is the title of unrelated documents. Two
documents of one title are joined if

* they share shingles of `SHINGLE` characters of their keys that are rare in the group of
  that title (at most `MAX_HOLDERS` documents have one): at least `SHARED_PER_DOUBLING` for
  every doubling of the group, as chance finds more in a larger group, and `MIN_SHARE` of
  their mean size (geometric), as chance finds more in long texts; or
* the title stands in both texts, in a group of at most `MAX_NAMED` (few texts on a subject
  name another one, but 新闻 stands in many texts).

`python -m benchmarks.data.titles` measures both kinds of error; docs/data.md has the figures.

The time is linear: shingles are sorted, and a rare one makes few pairs. Groups are looked at in
blocks of about `CHARACTERS_PER_BLOCK`; documents of a huge group that are in different
blocks are not compared.

Shape legend: D documents, M members of groups, P pairs, B documents of a block, S shingles.
"""

from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.data.cleaning.clusters import Clusters, Indices
from pipelines.data.cleaning.minhash import Shingles, mix, shingle_sets
from pipelines.data.text.compiled import have_numba
from pipelines.data.text.folding import title_keys

SHINGLE = 3
MAX_HOLDERS = 8
SHARED_PER_DOUBLING = 1.5
MIN_SHARE = 0.02
MAX_NAMED = 8
MIN_TITLE_CHARACTERS = 2
CHARACTERS_PER_BLOCK = 1 << 20
# Places for the shingles of a block: 4 MB, so that few share one.
SEEN_BITS = 22
SHARED_SHINGLES = "same title, rare wording in common"
TITLE_IN_BOTH = "same title, which stands in both texts"


class TitledDocuments(Protocol):
    """Documents on disk."""

    def keys(self, documents: Indices) -> pa.Array:
        """Keys of documents by their ascending indices, as large strings."""

    def titles(self, documents: Indices) -> pa.Array:
        """Titles of documents by their ascending indices, as strings."""


def join_titles(
    named_M: Indices,
    titles_M: npt.NDArray[np.uint64],
    characters_D: npt.NDArray[np.int32],
    documents: TitledDocuments,
    clusters: Clusters,
) -> None:
    """Join documents of one title with evidence from their content.

    Args:
        named_M: (M,) int64, the documents that have a title.
        titles_M: (M,) uint64, the hashes of their titles.
        characters_D: (D,) int32, the sizes of all documents.
        documents: Returns their keys and titles.
        clusters: The clusters to join, of D documents.
    """
    order = np.argsort(titles_M, kind="stable")
    runs = _runs(titles_M[order])
    several = np.repeat(runs > 1, runs)
    runs = runs[runs > 1]
    members = named_M[order[several]]
    group_M, size_M = np.repeat(np.arange(len(runs)), runs), np.repeat(runs, runs)
    for start, stop in _blocks(characters_D[members], group_M):
        order = start + np.argsort(members[start:stop])
        block, groups_B, sizes_B = members[order], group_M[order], size_M[order]
        keys = documents.keys(block)
        pairs_P2, shared_P = shared_rare_shingles(keys, groups_B, sizes_B)
        clusters.join(block[pairs_P2], SHARED_SHINGLES, shared_P)
        few = np.flatnonzero(sizes_B <= MAX_NAMED)
        titles = documents.titles(block[few])
        pairs_P2 = few[_named_in_both(keys.take(pa.array(few)), titles, groups_B[few])]
        clusters.join(block[pairs_P2], TITLE_IN_BOTH, np.full(len(pairs_P2), np.nan))


def _runs(ordered: npt.NDArray[Any]) -> Indices:
    """The lengths of the runs of equal values."""
    changes = ordered[1:] != ordered[:-1]
    if len(ordered) == 0:
        return np.empty(0, np.int64)
    lengths: Indices = np.diff(np.flatnonzero(np.concatenate([[True], changes, [True]])))
    return lengths


def _blocks(
    characters_M: npt.NDArray[np.int32], group_M: npt.NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Divide members into runs of about `CHARACTERS_PER_BLOCK` that cut no smaller group."""
    total_M = np.cumsum(characters_M, dtype=np.int64) - characters_M
    first_M = np.append([True], np.diff(group_M) > 0)[: len(group_M)]
    start_of_group = np.maximum.accumulate(np.where(first_M, np.arange(len(group_M)), 0))
    # Pieces of a group first, as it may be larger than a block; then runs of whole pieces.
    piece_M = (total_M - total_M[start_of_group]) // CHARACTERS_PER_BLOCK
    starts = np.flatnonzero(first_M | (np.diff(piece_M, prepend=0) != 0))
    run = total_M[starts] // CHARACTERS_PER_BLOCK
    edges = starts[np.append([True], np.diff(run) > 0)[: len(run)]].tolist()
    return list(pairwise([*edges, len(group_M)]))


def shared_rare_shingles(
    keys: pa.Array, groups_B: npt.NDArray[np.int64], sizes_B: npt.NDArray[np.int64]
) -> tuple[Indices, npt.NDArray[np.float64]]:
    """Find pairs of documents of one group that share enough rare shingles.

    Args:
        keys: B keys.
        groups_B: (B,) int64, the group of each document.
        sizes_B: (B,) int64, the number of documents of its group.

    Returns:
        (P, 2) int64 indices, and (P,) float64, the number of shingles they share.
    """
    sets_S, starts = shingle_sets(keys, SHINGLE)
    counts_B = np.diff(starts)
    holder_S = np.repeat(np.arange(len(keys), dtype=np.int32), counts_B)
    # One key for a shingle and its group: groups have nothing in common.
    sets_S = sets_S ^ np.repeat(mix(groups_B.astype(np.uint64)), counts_B)
    # Most shingles occur once, and need not be sorted.
    sets_S, holder_S = _repeated(sets_S, holder_S)
    order = np.argsort(sets_S, kind="stable")
    sets_S, holder_S = sets_S[order], holder_S[order]
    runs = _runs(sets_S)
    holders_S = np.repeat(runs, runs)
    is_rare = (holders_S > 1) & (holders_S <= MAX_HOLDERS)
    sets_S, holder_S = sets_S[is_rare], holder_S[is_rare].astype(np.int64)
    codes = [
        (holder_S[:-away] * len(keys) + holder_S[away:])[sets_S[:-away] == sets_S[away:]]
        for away in range(1, MAX_HOLDERS)
    ]
    code_P, shared_P = np.unique(np.concatenate(codes), return_counts=True)
    pairs_P2 = np.stack(np.divmod(code_P, max(len(keys), 1)), axis=1)
    enough_P = np.maximum(
        SHARED_PER_DOUBLING * np.log2(sizes_B[pairs_P2[:, 0]]),
        MIN_SHARE * np.sqrt(counts_B[pairs_P2].astype(np.float64).prod(axis=1)),
    )
    is_enough = shared_P >= enough_P
    return pairs_P2[is_enough], shared_P[is_enough].astype(np.float64)


def _repeated(
    sets_S: Shingles, holder_S: npt.NDArray[np.int32]
) -> tuple[Shingles, npt.NDArray[np.int32]]:
    """Leave most of the shingles out that occur once."""
    if not have_numba(None):
        return sets_S, holder_S
    from pipelines.data.cleaning import kernels

    is_repeated = np.empty(len(sets_S), np.bool_)
    seen = np.zeros(1 << SEEN_BITS, np.uint8)
    kernels.mark_repeated(sets_S, np.uint64(64 - SEEN_BITS), seen, is_repeated)
    return sets_S[is_repeated], holder_S[is_repeated]


def _named_in_both(keys: pa.Array, titles: pa.Array, groups: npt.NDArray[np.int64]) -> Indices:
    """Find pairs of documents of one group whose keys contain the title."""
    names = title_keys(titles.to_pylist())
    is_named = [
        len(name) >= MIN_TITLE_CHARACTERS and name in key
        for name, key in zip(names, keys.to_pylist(), strict=True)
    ]
    named = np.flatnonzero(is_named)
    named = named[np.argsort(groups[named], kind="stable")]
    pairs_P2 = np.stack([named[:-1], named[1:]], axis=1)
    same: Indices = pairs_P2[groups[named[:-1]] == groups[named[1:]]]
    return same
