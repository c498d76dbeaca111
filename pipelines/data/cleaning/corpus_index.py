"""An index of all clean parts: keys in memory, texts and signatures on disk.

Shape legend: D documents of all parts, H hash functions.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.cleaning.clusters import Clusters, Indices
from pipelines.data.cleaning.minhash import Signatures
from pipelines.data.cleaning.near_duplicates import Counts, join_by_signatures
from pipelines.data.cleaning.part import read_arrow
from pipelines.data.cleaning.titles import join_titles
from pipelines.params import CleanParams

INDEX_COLUMNS = ("id", "digest", "title_key", "characters")


class CorpusIndex:
    """The documents that `clean_part` kept, in the order of the parts.

    Args:
        parts: The directories that `clean_part` wrote.
        num_hashes: H, the height of a signature.

    Attributes:
        twin_D: (D,) int32, the document with the same key and the smallest id, often itself.
        characters_D: (D,) int32, the sizes of the texts.
    """

    def __init__(self, parts: Sequence[Path], num_hashes: int) -> None:
        self._parts = parts
        self._num_hashes = num_hashes
        sizes = [(part / "signatures.bin").stat().st_size // (4 * num_hashes) for part in parts]
        self._starts = np.cumsum([0, *sizes])
        ids: list[pa.Array] = []
        # Filled batch by batch: with a concatenation they would be in memory twice.
        digests_D2 = np.empty((len(self), 2), np.uint64)
        self._titles_D = np.empty(len(self), np.uint64)
        self._is_named_D = np.empty(len(self), np.bool_)
        self.characters_D = np.empty(len(self), np.int32)
        start = 0
        for part in parts:
            for batch in read_arrow(part / "kept.arrow", INDEX_COLUMNS):
                mine = slice(start, start + batch.num_rows)
                start = mine.stop
                # A copy: a column keeps its whole batch in memory.
                ids.append(batch["id"].take(pa.array(np.arange(batch.num_rows))))
                digests_D2[mine] = _words(batch["digest"])
                self._titles_D[mine] = _words(batch["title_key"])[:, 0]
                self._is_named_D[mine] = batch["title_key"].is_valid()
                self.characters_D[mine] = batch["characters"]
        self._ids = pa.chunked_array(ids, pa.string())
        ranks = pc.rank(self._ids, sort_keys="ascending", tiebreaker="first")
        self._rank_D = ranks.to_numpy().astype(np.int32)  # narrow, as it is kept
        self.twin_D = _twins(digests_D2, self._rank_D)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def bounds(self, part: int) -> tuple[int, int]:
        """The first document of a part, and of the next one."""
        return int(self._starts[part]), int(self._starts[part + 1])

    def ids(self, documents: Indices) -> pa.Array:
        """The ids of documents."""
        return self._ids.take(pa.array(documents))

    def join(self, kept: Indices, params: CleanParams) -> tuple[Clusters, Counts]:
        """Join near duplicates, and documents of one title with evidence from their content.

        Args:
            kept: Documents without exact duplicates.
            params: The section `clean`.

        Returns:
            The clusters of `kept`, by its indices, and the work that near duplicates took.
        """
        clusters = Clusters(len(kept))
        source = _PartDocuments(self._parts, self._starts, self._num_hashes, kept)
        counts = join_by_signatures(source, source.keys, params.near_duplicates, clusters)
        named = np.flatnonzero(self._is_named_D[kept])
        join_titles(named, self._titles_D[kept[named]], self.characters_D[kept], source, clusters)
        return clusters, counts

    def owners(self, kept: Indices, clusters: Clusters) -> Indices:
        """For each of `kept` the document of its cluster with the smallest id."""
        roots = clusters.find_all(np.arange(len(kept)))
        by_id = np.lexsort((self._rank_D[kept], roots))
        first_of_set = np.append([True], np.diff(roots[by_id]) > 0)[: len(kept)]
        owner = np.empty(len(kept), np.int64)
        owner[roots[by_id][first_of_set]] = kept[by_id][first_of_set]
        return owner[roots]


class _PartDocuments:
    """Signatures, keys and titles of the documents `kept`, read from the parts on demand."""

    def __init__(
        self, parts: Sequence[Path], starts: Indices, num_hashes: int, kept: Indices
    ) -> None:
        self._parts = parts
        self._starts = starts
        self.num_hashes = num_hashes
        self._kept = kept

    def __len__(self) -> int:
        return len(self._kept)

    def band(self, start: int, stop: int) -> Signatures:
        """(D, stop - start) uint32, some hashes of every document."""
        found = np.empty((len(self._kept), stop - start), np.uint32)
        bounds = np.searchsorted(self._kept, self._starts)
        for part, path in enumerate(self._parts):
            size = int(self._starts[part + 1] - self._starts[part])
            rows = np.fromfile(
                path / "signatures.bin", "<u4", (stop - start) * size, offset=4 * start * size
            )
            mine = slice(bounds[part], bounds[part + 1])
            wanted = self._kept[mine] - self._starts[part]
            found[mine] = rows.reshape(stop - start, size)[:, wanted].T
        return found

    def rows(self, documents: Indices) -> Signatures:
        """(len(documents), H) uint32, whole signatures."""
        wanted = self._kept[documents]
        found = np.empty((len(documents), self.num_hashes), np.uint32)
        part_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for part in np.unique(part_of).tolist():
            mine = np.flatnonzero(part_of == part)
            size = int(self._starts[part + 1] - self._starts[part])
            mapped = np.memmap(self._parts[part] / "signatures.bin", "<u4", "r").reshape(-1, size)
            found[mine] = mapped[:, wanted[mine] - self._starts[part]].T
        return found

    def keys(self, documents: Indices) -> pa.Array:
        """Keys of documents, in ascending order of the documents, as large strings."""
        return self._column("key", documents)

    def titles(self, documents: Indices) -> pa.Array:
        """Titles of documents, in ascending order of the documents, as large strings."""
        return self._column("title", documents)

    def _column(self, name: str, documents: Indices) -> pa.Array:
        wanted = self._kept[documents]
        part_of = np.searchsorted(self._starts, wanted, side="right") - 1
        found = [pa.array([], pa.large_string())]
        for part in np.unique(part_of).tolist():
            rows = wanted[part_of == part] - self._starts[part]
            start = 0
            for batch in _map_arrow(self._parts[part] / "kept.arrow"):
                inside = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
                if len(inside):
                    found.append(batch[name].take(pa.array(inside)).cast(pa.large_string()))
                start += batch.num_rows
        return pa.concat_arrays(found)


def _map_arrow(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of a mapped file: only a few texts are read."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
        for index in range(file.num_record_batches):
            yield file.get_batch(index)


def _twins(
    digests_D2: npt.NDArray[np.uint64], rank_D: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    order = np.lexsort((rank_D, *digests_D2.T)).astype(np.int32)
    ordered = digests_D2[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    twin_D = np.empty_like(order)
    twin_D[order] = order[is_first][np.cumsum(is_first) - 1]
    return twin_D


def _words(keys: pa.Array) -> npt.NDArray[np.uint64]:
    """View keys of 8 n bytes as (D, n) uint64; values for null keys are arbitrary."""
    words = keys.type.byte_width // 8
    found = np.frombuffer(keys.buffers()[1] or b"", np.uint64)
    return found[words * keys.offset :][: words * len(keys)].reshape(-1, words)
