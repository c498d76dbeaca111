"""Which split a cluster of documents goes to.

Shape legend: K clusters.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.base.workspace import SPLITS
from pipelines.params import SplitParams

NAMES_PER_BLOCK = 4096
TRAIN = SPLITS.index("train")


def split_of(cluster: str, params: SplitParams) -> str:
    """Choose the split of a cluster by a stable hash.

    The choice depends only on the seed, the fractions and the cluster: when the corpus grows, it
    stays the same unless a document with a smaller id joins the cluster.

    Args:
        cluster: The smallest document id of the cluster.
        params: Fractions and seed.

    Returns:
        `train`, `validation` or `test`.
    """
    digest = hashlib.sha256(f"{params.seed}:{cluster}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < params.test_fraction:
        return "test"
    if position < params.test_fraction + params.validation_fraction:
        return "validation"
    return "train"


def splits_of_clusters(
    names: pa.Array,
    documents_K: npt.NDArray[np.int64],
    characters_K: npt.NDArray[np.int64],
    params: SplitParams,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Choose the split of every cluster; one that is too large to be held out goes to train.

    A cluster is too large for validation or test if it is more than half of what the split
    is to hold, in documents or in characters: it would decide what the split measures, and
    how large it is. A single document is never too large in documents, and neither are
    two documents of average size in characters.

    Args:
        names: The smallest document id of each cluster.
        documents_K: (K,) int64, the documents of each cluster.
        characters_K: (K,) int64, their characters.
        params: Fractions and seed.

    Returns:
        (K,) uint8, indices in `SPLITS`, and (K,) bool, whether a cluster went to train as it
        was too large.
    """
    split_K = np.empty(len(names), np.uint8)
    for start in range(0, len(names), NAMES_PER_BLOCK):  # all names are large in Python
        block = names.slice(start, NAMES_PER_BLOCK).to_pylist()
        split_K[start : start + len(block)] = [
            SPLITS.index(split_of(name, params)) for name in block
        ]
    documents, characters = documents_K.sum(), characters_K.sum()
    too_large_K = np.zeros(len(names), np.bool_)
    for name in ("validation", "test"):
        fraction = getattr(params, f"{name}_fraction")
        too_large_K |= (split_K == SPLITS.index(name)) & (
            (documents_K > max(fraction * documents / 2, 1))
            | (characters_K > max(fraction * characters / 2, 2 * characters / max(documents, 1)))
        )
    split_K[too_large_K] = TRAIN
    return split_K, too_large_K
