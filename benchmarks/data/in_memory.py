"""The search for near duplicates over texts in memory; `clean` reads them from its parts."""

import pyarrow as pa

from pipelines.data.cleaning.clusters import Clusters, Indices
from pipelines.data.cleaning.minhash import Signatures, minhash_signatures
from pipelines.data.cleaning.near_duplicates import Counts, join_by_signatures
from pipelines.params import NearDuplicateParams


class _Signatures:
    """(D, H) uint32 as a `SignatureSource`."""

    def __init__(self, signatures_DH: Signatures) -> None:
        self._signatures_DH = signatures_DH
        self.num_hashes = signatures_DH.shape[1]

    def band(self, start: int, stop: int) -> Signatures:
        """(D, stop - start) uint32, some hashes of every document."""
        return self._signatures_DH[:, start:stop]

    def rows(self, documents: Indices) -> Signatures:
        """(len(documents), H) uint32, whole signatures."""
        return self._signatures_DH[documents]


def join_texts(texts: pa.Array, params: NearDuplicateParams, clusters: Clusters) -> Counts:
    """Join texts with a Jaccard similarity of at least `min_jaccard`.

    Args:
        texts: D large strings.
        params: Shingle length, bands, rows and the bound.
        clusters: The clusters to join, of D documents.

    Returns:
        The work done.
    """
    source = _Signatures(minhash_signatures(texts, params))
    return join_by_signatures(source, texts.take, params, clusters)
