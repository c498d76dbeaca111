"""Find documents with the title of a held-out one that also have some of its wording.

A title alone is no evidence: it may be a placeholder that many documents have. So documents are
compared with the held-out ones of their title, and must share as many windows as an excerpt has,
however common these are and wherever they stand.

Shape legend: D documents, H hits, P places.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.overlap.hits import read_hits
from pipelines.data.overlap.stream import document_batches, documents_path
from pipelines.data.overlap.window_index import HeldOut, WindowIndex
from pipelines.data.overlap.windows import MULTIPLIER, Hashes, Integers
from pipelines.data.shards import ShardReader
from pipelines.data.text.arrays import hash_keys
from pipelines.data.text.folding import title_keys

SHIFT = 32


def same_titles(
    reader: ShardReader,
    held_out: HeldOut,
    index: WindowIndex,
    scans: Sequence[Path],
    min_windows: int,
) -> tuple[Integers, Integers, npt.NDArray[np.float64]]:
    """Find the documents of a split with the title and some wording of a held-out one.

    Args:
        reader: The split.
        held_out: What it is compared with.
        index: The windows of the held-out text.
        scans: The hits of the split (`hits.scan`).
        min_windows: Fewest windows that a document shares with those of its title.

    Returns:
        (D,) int64 documents, ascending; (D,) int64, for each the held-out document with most
        of its windows; and (D,) float64, how many hits it has there per window of that one.
    """
    sizes = zip(held_out.removed, held_out.sizes[:, 0].tolist(), strict=True)
    held_keys = np.concatenate(
        [_keys(held_out.directory, split, np.arange(size)) for split, size in sizes]
    )
    documents_D, keys_D = _titled(reader, _documents(reader, index, scans), held_keys)
    is_titled = np.isin(held_keys, keys_D)
    pairs = [np.empty(0, np.int64)]
    for block in range(index.num_blocks):
        hits = read_hits(scans, block)
        hits = hits[np.isin(hits["document"], documents_D)]
        ids, window_H = np.unique(hits["id"], return_inverse=True)
        row, places = index.expand(block, ids.astype(np.int64))
        held_P = places["document"].astype(np.int64)
        row, held_P = row[is_titled[held_P]], held_P[is_titled[held_P]]
        keys_H = keys_D[np.searchsorted(documents_D, hits["document"])]
        at_H = _first_equal(_both(window_H, keys_H), _both(row, held_keys[held_P]))
        mine = at_H >= 0
        pairs.append(hits["document"][mine].astype(np.int64) << SHIFT | held_P[at_H[mine]])
    found, counts = np.unique(np.concatenate(pairs), return_counts=True)
    order = np.lexsort((-counts, found >> SHIFT))
    documents, first = np.unique(found[order] >> SHIFT, return_index=True)
    enough = np.add.reduceat(counts[order], first) >= min_windows if len(first) else first > 0
    documents, best = documents[enough], order[first][enough]
    held = found[best] & ((1 << SHIFT) - 1)
    return documents, held, counts[best] / np.maximum(index.documents[held], 1)


def _documents(reader: ShardReader, index: WindowIndex, scans: Sequence[Path]) -> Integers:
    """The documents with any hit, ascending."""
    path = documents_path(reader.directory, reader.split)
    is_hit = np.zeros(pq.read_metadata(path).num_rows, np.bool_)
    for block in range(index.num_blocks):
        is_hit[read_hits(scans, block)["document"]] = True
    return np.flatnonzero(is_hit)


def _titled(reader: ShardReader, rows: Integers, held_keys: Hashes) -> tuple[Integers, Hashes]:
    """Find those of some documents that have a held-out title; also return the titles' hashes."""
    # An empty title is none.
    known = np.setdiff1d(held_keys, hash_keys(pa.array([""])))
    documents, keys = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    start = 0
    # Batch by batch: nearly all documents may have a hit, and few have such a title.
    for batch in _key_batches(reader.directory, reader.split, rows):
        at = np.minimum(np.searchsorted(known, batch), len(known) - 1)
        mine = np.flatnonzero(known[at] == batch) if len(known) else at[:0]
        documents.append(rows[start + mine])
        keys.append(batch[mine])
        start += len(batch)
    return np.concatenate(documents), np.concatenate(keys)


def _keys(directory: Path, split: str, rows: Integers) -> Hashes:
    """Hash the titles of some documents."""
    return np.concatenate([np.empty(0, np.uint64), *_key_batches(directory, split, rows)])


def _key_batches(directory: Path, split: str, rows: Integers) -> Iterator[Hashes]:
    """Hash the titles of some documents; not all titles are in memory at a time."""
    for batch in document_batches(directory, split, rows, ["title"]):
        yield hash_keys(pa.array(title_keys(batch["title"].to_pylist()), pa.string()))


def _both(windows: Integers, keys: Hashes) -> Hashes:
    """One number for a window and a title."""
    return (windows.astype(np.uint64) * MULTIPLIER) ^ keys


def _first_equal(wanted_H: Hashes, known_P: Hashes) -> Integers:
    """(H,) int64, the index of an equal one, or -1."""
    order = np.argsort(known_P, kind="stable")
    at_H = np.searchsorted(known_P[order], wanted_H)
    found_H = np.full(len(wanted_H), -1, np.int64)
    inside = np.flatnonzero(at_H < len(order))
    row = order[at_H[inside]]
    equal = known_P[row] == wanted_H[inside]
    found_H[inside[equal]] = row[equal]
    return found_H
