"""All clean parts at once, in memory only by their keys; texts and signatures stay on disk.

Shape legend: D documents of all parts, H hash functions.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.clean_part import read_arrow
from pipelines.minhash import Signatures
from pipelines.near_duplicates import Indices, UnionFind, join_by_signatures
from pipelines.params import CleanParams


class CorpusIndex:
    """The documents that `clean_part` let stay, in the order of the parts.

    Args:
        parts: The directories that `clean_part` wrote.
        num_hashes: H, the height of a signature.
    """

    def __init__(self, parts: Sequence[Path], num_hashes: int) -> None:
        self._parts = parts
        self._num_hashes = num_hashes
        keys: dict[str, list[pa.Array]] = {"id": [], "digest": [], "title_key": []}
        sizes = []
        for part in parts:
            sizes.append(0)
            for batch in read_arrow(part / "kept.arrow", tuple(keys)):
                sizes[-1] += batch.num_rows
                for name, arrays in keys.items():
                    # A copy: the column of a batch holds on to all of the batch.
                    arrays.append(batch[name].take(pa.array(np.arange(batch.num_rows))))
        self._starts = np.cumsum([0, *sizes])
        self._keys = {name: pa.chunked_array(arrays) for name, arrays in keys.items()}
        ids = self._keys["id"]
        self.rank: Indices = _to_numpy(pc.rank(ids, sort_keys="ascending", tiebreaker="first"))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def bounds(self, part: int) -> tuple[int, int]:
        """First document of a part, and of the next one."""
        return int(self._starts[part]), int(self._starts[part + 1])

    def ids(self, documents: Indices) -> pa.Array:
        """The ids of documents."""
        return self._keys["id"].take(pa.array(documents))

    def exact_duplicates(self) -> npt.NDArray[np.bool_]:
        """(D,) bool, the documents whose text another one has that has a smaller id."""
        group = _to_numpy(self._keys["digest"].dictionary_encode().combine_chunks().indices)
        order = np.lexsort((self.rank, group))
        repeated = np.zeros(len(self), dtype=bool)
        repeated[order[1:]] = group[order[1:]] == group[order[:-1]]
        return repeated

    def clusters(self, kept: Indices, params: CleanParams) -> tuple[Indices, int]:
        """Join documents of one title, and near duplicates.

        Args:
            kept: Documents without exact duplicates.
            params: The section `clean`.

        Returns:
            For each of `kept` the document of its cluster that has the smallest id, and how
            many pairs of near duplicates were joined.
        """
        sets = UnionFind(len(kept))
        titles = self._keys["title_key"].dictionary_encode().combine_chunks().indices
        group = _to_numpy(pc.fill_null(titles, -1))[kept]
        order = np.argsort(group, kind="stable")
        same = (group[order[1:]] == group[order[:-1]]) & (group[order[1:]] >= 0)
        for first, second in zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True):
            sets.union(first, second)
        source = _PartSignatures(self._parts, self._starts, self._num_hashes, kept)
        pairs = join_by_signatures(source, source.texts, params.near_duplicates, sets)
        roots = sets.find_all(np.arange(len(kept)))
        by_id = np.lexsort((self.rank[kept], roots))
        first_of_set = np.append(True, np.diff(roots[by_id]) > 0)
        owner = np.empty(len(kept), np.int64)
        owner[roots[by_id][first_of_set]] = kept[by_id][first_of_set]
        return owner[roots], pairs


class _PartSignatures:
    """Signatures and texts of the documents `kept`, read from the parts when they are asked for."""

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
        pieces = []
        for part, path in enumerate(self._parts):
            size = int(self._starts[part + 1] - self._starts[part])
            rows = np.fromfile(
                path / "signatures.bin", "<u4", (stop - start) * size, offset=4 * start * size
            )
            pieces.append(rows.reshape(stop - start, size))
        return np.ascontiguousarray(np.concatenate(pieces, axis=1).T[self._kept])

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

    def texts(self, documents: Indices) -> pa.Array:
        """Texts of documents, in ascending order of them, as large strings."""
        wanted = self._kept[documents]
        part_of = np.searchsorted(self._starts, wanted, side="right") - 1
        found = [pa.array([], pa.large_string())]
        for part in np.unique(part_of).tolist():
            rows = wanted[part_of == part] - self._starts[part]
            start = 0
            for batch in _map_arrow(self._parts[part] / "kept.arrow"):
                inside = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
                if len(inside):
                    texts = batch["text"].take(pa.array(inside))
                    found.append(texts.cast(pa.large_string()))
                start += batch.num_rows
        return pa.concat_arrays(found)


def _map_arrow(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of a file that is mapped: only a few texts are wanted."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
        for index in range(file.num_record_batches):
            yield file.get_batch(index)


def _to_numpy(array: pa.Array | pa.ChunkedArray) -> Indices:
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.int64)
