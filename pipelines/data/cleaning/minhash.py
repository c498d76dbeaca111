"""Shingles of characters, their MinHash signatures and the true Jaccard similarity.

MinHash: Broder, "On the resemblance and containment of documents" (1997). Characters and
not words, as Chinese has no spaces. numba runs the loops; without it NumPy gives the same
numbers.

Shape legend: D documents, H hash functions, S shingles of one document, P pairs.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.data.text.arrays import utf8_views
from pipelines.data.text.compiled import have_numba
from pipelines.params import NearDuplicateParams

Signatures = npt.NDArray[np.uint32]
Shingles = npt.NDArray[np.uint64]

# Fixed: the same text has the same signature in every run.
HASH_SEED = 20_231_101
SHINGLES_PER_BLOCK = 2048


def minhash_signatures(
    texts: pa.Array, params: NearDuplicateParams, *, use_numba: bool | None = None
) -> Signatures:
    """Compute the MinHash signature of every document.

    Args:
        texts: D strings.
        params: Shingle length, bands and rows; H = bands x rows.
        use_numba: Whether to compile the loops; by default if numba is installed.

    Returns:
        (D, H) uint32.
    """
    num_hashes = params.bands * params.rows_per_band
    generator = np.random.default_rng(HASH_SEED)
    # x -> a x + b mod 2^32 with odd a is a permutation of the 32-bit integers.
    a_H = generator.integers(2**32, size=num_hashes, dtype=np.uint32) | np.uint32(1)
    b_H = generator.integers(2**32, size=num_hashes, dtype=np.uint32)
    signatures_DH = np.full((len(texts), num_hashes), np.iinfo(np.uint32).max, dtype=np.uint32)
    if have_numba(use_numba):
        from pipelines.data.cleaning import kernels

        data, offsets = utf8_views(texts)
        kernels.minhash(data, offsets, params.shingle_characters, a_H, b_H, signatures_DH)
        return signatures_DH
    for document, text in enumerate(texts):
        hashes_S = shingles(text.as_py(), params.shingle_characters)
        short_S = (hashes_S >> np.uint64(32)).astype(np.uint32)
        for start in range(0, len(short_S), SHINGLES_PER_BLOCK):
            block_S = short_S[start : start + SHINGLES_PER_BLOCK]
            permuted_HS = a_H[:, None] * block_S[None, :] + b_H[:, None]
            lowest_H = signatures_DH[document]
            np.minimum(lowest_H, permuted_HS.min(axis=1), out=lowest_H)
    return signatures_DH


def shingle_sets(
    texts: pa.Array, length: int, *, use_numba: bool | None = None
) -> tuple[Shingles, npt.NDArray[np.int64]]:
    """Hash the shingles of every document.

    Args:
        texts: D strings.
        length: Characters per shingle.
        use_numba: Whether to compile the loops; by default if numba is installed.

    Returns:
        uint64, the set of each document, sorted, one after another; and (D + 1,) int64, where
        each set starts.
    """
    if have_numba(use_numba):
        from pipelines.data.cleaning import kernels

        data, offsets = utf8_views(texts)
        hashes = np.empty(int(offsets[-1] - offsets[0]) + len(texts), np.uint64)
        starts = np.empty(len(offsets), np.int64)
        kernels.shingle_all(data, offsets, length, hashes, starts)
        hashes = hashes[: starts[-1]]
    else:
        of_each = [shingles(text.as_py(), length) for text in texts]
        hashes = np.concatenate([np.empty(0, np.uint64), *of_each])
        starts = np.cumsum([0, *map(len, of_each)])
    # NumPy sorts with vector instructions, ten times as fast as compiled code without them.
    for start, stop in pairwise(starts.tolist()):
        hashes[start:stop].sort()
    is_first = np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]
    is_first[starts[:-1]] = True
    return hashes[is_first], np.append(0, np.cumsum(is_first))[starts]


def jaccard_of_pairs(
    texts: pa.Array,
    pairs_P2: npt.NDArray[np.int64],
    shingle_characters: int,
    *,
    use_numba: bool | None = None,
) -> npt.NDArray[np.float64]:
    """Compute the true Jaccard similarity of pairs of documents.

    Args:
        texts: D strings.
        pairs_P2: (P, 2) int64, indices of documents.
        shingle_characters: Characters per shingle.
        use_numba: Whether to compile the loops; by default if numba is installed.

    Returns:
        (P,) float64 in [0, 1].
    """
    sets, starts = shingle_sets(texts, shingle_characters, use_numba=use_numba)
    if have_numba(use_numba):
        from pipelines.data.cleaning import kernels

        similarities = np.empty(len(pairs_P2), np.float64)
        kernels.jaccards(sets, starts, pairs_P2, similarities)
        return similarities
    unique = np.split(sets, starts[1:-1])
    return np.array([jaccard(unique[a], unique[b]) for a, b in pairs_P2.tolist()])


def shingles(text: str, length: int) -> Shingles:
    """Hash every run of `length` characters.

    Args:
        text: The document; one shorter than `length` is a single shingle.
        length: Characters per shingle.

    Returns:
        (S,) uint64 in text order, with repeats.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    num_shingles = max(1, len(points) - length + 1)
    hashes = np.zeros(num_shingles, dtype=np.uint64)
    for offset in range(min(length, len(points))):
        hashes = mix(hashes + points[offset : offset + num_shingles])
    return hashes


def jaccard(a: Shingles, b: Shingles) -> float:
    """Compute the Jaccard similarity of two sets.

    Args:
        a: Sorted, without repeats.
        b: Sorted, without repeats.

    Returns:
        Size of the intersection over size of the union, in [0, 1].
    """
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def mix(values: Shingles) -> Shingles:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), a bijection."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
