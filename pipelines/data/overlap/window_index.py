"""An index of the windows of held-out text, on disk: a filter, and hashes with their places.

Nearly no window of a corpus is held out, and a Bloom filter (Bloom, 1970) rules out nearly all
of them; both its bits are in one word, so a test costs one cache line. The few that pass are
looked up among sorted hashes, block by block. Memory does not grow with the index: with a filter
that is too small for it more windows pass, but no known window is ever missed.

filter.bin     the words of the filter
hashes.bin     uint64, ascending within each block
places.bin     `PLACE`, where each of them stands
facts.npz      `extents`: where each block starts; `documents`, `sequences`: windows of each

Documents and sequences are numbered through all held-out splits. Equal windows share the number
of the first of them, which names the window (`id` elsewhere).

Shape legend: W windows, C candidates.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.base.artifacts import write_array
from pipelines.data.overlap.stream import (
    document_rows,
    document_starts,
    documents_path,
    read_pieces,
    stream_parts,
)
from pipelines.data.overlap.windows import (
    Hashes,
    Integers,
    TokenFolder,
    bits_of,
    shift_of,
    token_folder,
)
from pipelines.data.shards import SequenceFiles, shard_paths
from pipelines.data.text.compiled import have_numba
from pipelines.data.text.shard_vocabulary import ShardVocabulary

# 20 bytes each while a block is in memory, and about 60 while it is sorted.
WINDOWS_PER_BLOCK = 3 << 17
# Each block is an open file while the index is built.
MAX_BLOCKS = 512
# 32 MB: with two bits per window and 33 million windows, 5 % of the others pass.
BITS_PER_WINDOW, MAX_FILTER_BITS = 16, 28
PLACE = np.dtype([("document", "<u4"), ("position", "<u4"), ("sequence", "<i4")])
RECORD = np.dtype([("hash", "<u8"), ("place", PLACE)])
# The sequence of a window that is in two of them.
NO_SEQUENCE = -1


@dataclass(frozen=True)
class HeldOut:
    """Text that an earlier split must not have.

    Args:
        directory: The output of `tokenize`.
        removed: For every held-out split, the sequences that it has lost, ascending.
        length: Tokens per sequence.
        window_characters: Characters per window.
        windows_per_block: Approximate number of windows per block.
    """

    directory: Path
    removed: Mapping[str, Integers]
    length: int
    window_characters: int
    windows_per_block: int = WINDOWS_PER_BLOCK

    @property
    def sizes(self) -> Integers:
        """(splits, 2) int64, the documents and the sequences of each split."""
        sizes = [
            (
                pq.read_metadata(documents_path(self.directory, split)).num_rows,
                len(SequenceFiles(shard_paths(self.directory, split), self.length)),
            )
            for split in self.removed
        ]
        return np.array(sizes, np.int64).reshape(-1, 2)

    @property
    def folder(self) -> TokenFolder:
        """What makes comparison keys from its tokens."""
        return token_folder(ShardVocabulary.read(self.directory).tokens)

    def files(self) -> SequenceFiles:
        """The sequences of all splits, with those removed."""
        paths = [path for split in self.removed for path in shard_paths(self.directory, split)]
        return SequenceFiles(paths, self.length)

    def removed_sequences(self) -> Integers:
        """The numbers of the sequences that the splits have lost."""
        starts = np.cumsum(self.sizes[:, 1]) - self.sizes[:, 1]
        pairs = zip(starts.tolist(), self.removed.values(), strict=True)
        return np.concatenate([start + removed for start, removed in pairs])

    def documents(self, rows: Integers, columns: list[str]) -> pa.Table:
        """Read what is known of some documents: `split` and columns of the splits' tables.

        Args:
            rows: Numbers of documents, ascending.
            columns: Names of columns.
        """
        tables, start = [], 0
        for split, size in zip(self.removed, self.sizes[:, 0].tolist(), strict=True):
            mine = rows[(rows >= start) & (rows < start + size)] - start
            table = document_rows(self.directory, split, mine, columns)
            tables.append(table.append_column("split", pa.array([split] * len(mine), pa.string())))
            start += size
        return pa.concat_tables(tables)

    def document_starts(self) -> Integers:
        """The first token of each document in the stream of all splits."""
        starts, first = [], 0
        for split, sequences in zip(self.removed, self.sizes[:, 1].tolist(), strict=True):
            # The last documents may be in no sequence.
            tokens = np.minimum(document_starts(self.directory, split), sequences * self.length)
            starts.append(first + tokens)
            first += sequences * self.length
        return np.concatenate(starts)


def build_index(held_out: HeldOut, directory: Path) -> None:
    """Write the index into an empty directory."""
    sizes = held_out.sizes
    documents, sequences = (np.zeros(count, np.int64) for count in sizes.sum(axis=0))
    most = int(sizes[:, 1].sum()) * held_out.length
    bits = min(max((BITS_PER_WINDOW * most).bit_length(), 10), MAX_FILTER_BITS)
    words = np.zeros(1 << (bits - 6), np.uint64)
    num_blocks = min(max(1, -(-most // held_out.windows_per_block)), MAX_BLOCKS)
    with ExitStack() as stack:
        files = [stack.enter_context(TemporaryFile()) for _ in range(num_blocks)]
        for records in _records(held_out, sizes):
            hashes, places = records["hash"], records["place"]
            _mark(np.ascontiguousarray(hashes), words)
            documents += np.bincount(places["document"], minlength=len(documents))
            whole = places["sequence"][places["sequence"] != NO_SEQUENCE]
            sequences += np.bincount(whole, minlength=len(sequences))
            order, bounds = by_block(hashes, num_blocks)
            for file, first, last in zip(files, bounds[:-1], bounds[1:], strict=True):
                write_array(file, records[order[first:last]])
        extents = _write_blocks(files, directory)
    with (directory / "filter.bin").open("wb") as stream:
        write_array(stream, words)
    np.savez(directory / "facts.npz", extents=extents, documents=documents, sequences=sequences)


def _records(held_out: HeldOut, sizes: Integers) -> Iterator[npt.NDArray[np.void]]:
    folder = held_out.folder
    starts = np.cumsum(sizes, axis=0) - sizes
    for (split, removed), (document, sequence) in zip(
        held_out.removed.items(), starts.tolist(), strict=True
    ):
        for part in stream_parts(held_out.directory, split, held_out.length):
            for pieces in read_pieces(part, removed):
                windows = folder.windows(pieces.ids_T, pieces.offsets, held_out.window_characters)
                first = pieces.sequences_T[windows.first_W]
                is_whole = first == pieces.sequences_T[windows.last_W]
                records = np.empty(len(first), RECORD)
                records["hash"] = windows.hashes_W
                records["place"]["document"] = document + pieces.documents_P[windows.documents_W]
                records["place"]["position"] = windows.positions_W
                records["place"]["sequence"] = np.where(is_whole, sequence + first, NO_SEQUENCE)
                yield records


def _write_blocks(files: Sequence[IO[bytes]], directory: Path) -> Integers:
    """Sort the blocks; return where each starts."""
    extents = [0]
    with (
        (directory / "hashes.bin").open("wb") as hashes,
        (directory / "places.bin").open("wb") as places,
    ):
        for file in files:
            file.seek(0)
            records = np.fromfile(file, RECORD)
            file.close()
            order = stable_order(records["hash"])
            write_array(hashes, records["hash"][order])
            write_array(places, records["place"][order])
            extents.append(extents[-1] + len(records))
    return np.array(extents)


def stable_order(hashes: Hashes) -> Integers:
    """`argsort(kind="stable")` in a fraction of its time, as few hashes are equal."""
    order = np.argsort(hashes)
    is_same = np.diff(hashes[order]) == 0
    is_tied = np.append(is_same, False)[: len(order)]
    is_tied[1:] |= is_same
    equal = np.flatnonzero(is_tied)
    ties = np.sort(order[equal])
    order[equal] = ties[np.argsort(hashes[ties], kind="stable")]
    return order


def by_block(hashes: Hashes, num_blocks: int) -> tuple[Integers, Integers]:
    """Order hashes by their block; also return where each block starts in that order."""
    # By the lower bits: the upper ones choose the word of the filter and sort a block.
    low = (hashes & np.uint64(0xFFFFFFFF)) * np.uint64(num_blocks) >> np.uint64(32)
    block = low.astype(np.uint16)
    order = np.argsort(block, kind="stable")
    return order, np.searchsorted(block[order], np.arange(num_blocks + 1))


class WindowIndex:
    """An index that `build_index` wrote.

    Args:
        directory: Where it is.

    Attributes:
        filter: (2^k,) uint64, the words of the filter.
        extents: Where each block starts.
        documents: The windows of each document.
        sequences: The windows within each sequence.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.filter = np.fromfile(directory / "filter.bin", np.uint64)
        with np.load(directory / "facts.npz") as facts:
            self.extents: Integers = facts["extents"]
            self.documents: Integers = facts["documents"]
            self.sequences: Integers = facts["sequences"]

    @property
    def num_blocks(self) -> int:
        """The number of blocks."""
        return len(self.extents) - 1

    def hashes(self, block: int) -> Hashes:
        """Read the hashes of a block, ascending."""
        return self._read("hashes.bin", np.dtype(np.uint64), block)

    def places(self, block: int) -> npt.NDArray[np.void]:
        """Read the places of a block's windows."""
        return self._read("places.bin", PLACE, block)

    def expand(
        self, block: int, ids_H: Integers, at_most: int | None = None
    ) -> tuple[Integers, npt.NDArray[np.void]]:
        """Find all places of some windows of a block.

        Args:
            block: Number of the block.
            ids_H: (H,) int64.
            at_most: Places per window; all by default.

        Returns:
            For each place, the index of its window in `ids_H`, and the place.
        """
        known, first_H = self.hashes(block), ids_H - self.extents[block]
        sizes_H = np.searchsorted(known, known[first_H], "right") - first_H
        sizes_H = np.minimum(sizes_H, at_most or len(known))
        row = np.repeat(np.arange(len(ids_H)), sizes_H)
        nth = np.arange(len(row)) - np.repeat(np.cumsum(sizes_H) - sizes_H, sizes_H)
        return row, self.places(block)[first_H[row] + nth]

    def _read(self, name: str, dtype: np.dtype[Any], block: int) -> npt.NDArray[Any]:
        start, stop = self.extents[block : block + 2].tolist()
        return np.fromfile(
            self._directory / name, dtype, stop - start, offset=start * dtype.itemsize
        )

    def passing(self, hashes_W: Hashes, *, use_numba: bool | None = None) -> Integers:
        """Find the windows that may be in the index.

        Args:
            hashes_W: (W,) uint64.
            use_numba: Whether to compile the loop; by default if numba is installed.

        Returns:
            (C,) int64, indices into the windows.
        """
        shift = shift_of(self.filter)
        if have_numba(use_numba):
            from pipelines.data.overlap import kernels

            rows_W = np.empty(len(hashes_W), np.int64)
            return rows_W[: kernels.passing(hashes_W, self.filter, shift, rows_W)]
        bits_W = bits_of(hashes_W)
        return np.flatnonzero(self.filter[hashes_W >> shift] & bits_W == bits_W)

    def look_up(self, hashes_C: Hashes) -> Iterator[tuple[Integers, Integers]]:
        """Look windows up, block by block.

        Args:
            hashes_C: (C,) uint64.

        Yields:
            For every block, the indices of those that are in it, ascending, and their ids.
        """
        order, bounds = by_block(hashes_C, self.num_blocks)
        for block in range(self.num_blocks):
            mine = order[bounds[block] : bounds[block + 1]]
            known = self.hashes(block) if len(mine) else np.empty(0, np.uint64)
            if not len(known):
                yield np.empty(0, np.int64), np.empty(0, np.int64)
                continue
            at = np.searchsorted(known, hashes_C[mine])
            found = known[np.minimum(at, len(known) - 1)] == hashes_C[mine]
            yield mine[found], at[found] + self.extents[block]


def _mark(hashes: Hashes, words: Hashes) -> None:
    shift = shift_of(words)
    if have_numba(None):
        from pipelines.data.overlap import kernels

        kernels.mark_hashes(hashes, words, shift)
    else:
        np.bitwise_or.at(words, hashes >> shift, bits_of(hashes))
