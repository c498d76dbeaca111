"""Clusters of documents, and the pairs that made them.

Shape legend: D documents, P pairs, L links.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Links:
    """The pairs of documents that joined two clusters, with one evidence each.

    Args:
        pairs_L2: (L, 2) int64.
        evidence: What was found.
        strength_L: (L,) float64, how much of it.
    """

    pairs_L2: Indices
    evidence: str
    strength_L: npt.NDArray[np.float64]


class Clusters:
    """Disjoint sets of the documents 0..D-1; the smallest member represents its set.

    Args:
        num_documents: D; each starts in a cluster of its own.

    Attributes:
        links: The pairs that joined two clusters, as few as connect them.
    """

    def __init__(self, num_documents: int) -> None:
        # Narrow, as there may be millions.
        self._parent = np.arange(num_documents, dtype=np.int32)
        self.links: list[Links] = []

    def __len__(self) -> int:
        return len(self._parent)

    def find(self, document: int) -> int:
        """The smallest member of the document's cluster."""
        parent = self._parent
        while parent[document] != document:
            parent[document] = parent[parent[document]]
            document = int(parent[document])
        return document

    def find_all(self, documents: Indices) -> npt.NDArray[np.int32]:
        """The smallest member of each document's cluster."""
        roots = self._parent[documents]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                self._parent[documents] = roots
                return roots
            roots = above

    def join(self, pairs_P2: Indices, evidence: str, strength_P: npt.NDArray[np.float64]) -> int:
        """Join the clusters of pairs of documents.

        Args:
            pairs_P2: (P, 2) int64.
            evidence: What was found, in the words of `links.parquet`.
            strength_P: (P,) float64, how much of it.

        Returns:
            The number of pairs that were in different clusters.
        """
        is_new = np.array([self._union(a, b) for a, b in pairs_P2.tolist()], np.bool_)
        if is_new.any():
            self.links.append(Links(pairs_P2[is_new], evidence, strength_P[is_new]))
        return int(is_new.sum())

    def _union(self, a: int, b: int) -> bool:
        low, high = sorted((self.find(a), self.find(b)))
        self._parent[high] = low
        return low != high
