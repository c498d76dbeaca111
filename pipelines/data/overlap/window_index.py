"""An index of all windows of a reference: a filter in memory, and hashes in files.

Nearly no window of a corpus is in the reference, and a Bloom filter (Bloom, 1970) rules out
nearly all of them; both its bits are in one word, so a test costs one cache line. The few that
pass are looked up among the sorted hashes, block by block. The corpus is read once, and memory
does not grow with the reference: with a filter that is too small for it more windows pass, but
no known window is ever missed.

Shape legend: N sequences, L length, W windows of a sequence, C candidates.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import numpy.typing as npt

from pipelines.data.shards import Tokens
from pipelines.data.text.compiled import have_numba

Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# 12 bytes each while they are searched, and about 40 while they are sorted.
WINDOWS_PER_BLOCK = 3 << 18
# Each block is an open file while the index is built.
MAX_BLOCKS = 512
# 32 MB: with two bits per window and 33 million windows, 5 % of the others pass.
BITS_PER_WINDOW, MAX_FILTER_BITS = 16, 28
SEQUENCES_PER_STEP = 1024
CANDIDATES_PER_STEP = 1 << 20
RECORD = np.dtype([("hash", "<u8"), ("owner", "<i4")])


class WindowIndex:
    """The windows of some sequences, and the sequences that have them.

    Args:
        blocks: (N', L) uint16 each, N sequences in all; read once.
        num_windows: The number of their windows.
        window_tokens: Tokens per window; at most L.
        windows_per_block: Approximate number of windows per block.
    """

    def __init__(
        self,
        blocks: Iterable[Tokens],
        num_windows: int,
        window_tokens: int,
        *,
        windows_per_block: int = WINDOWS_PER_BLOCK,
    ) -> None:
        self._window_tokens = window_tokens
        bits = min(max((BITS_PER_WINDOW * num_windows).bit_length(), 10), MAX_FILTER_BITS)
        self._filter = np.zeros(1 << (bits - 6), np.uint64)
        self._shift = np.uint64(64 - (bits - 6))
        self._num_blocks = min(max(1, -(-num_windows // windows_per_block)), MAX_BLOCKS)
        self._file: IO[bytes] = TemporaryFile()  # noqa: SIM115 - lives as long as this object
        weakref.finalize(self, self._file.close)
        self._extents: list[tuple[int, int]] = []
        self._store(blocks)

    def _store(self, blocks: Iterable[Tokens]) -> None:
        with ExitStack() as stack:
            files = [stack.enter_context(TemporaryFile()) for _ in range(self._num_blocks)]
            start = 0
            for block_NL in blocks:
                for at in range(0, len(block_NL), SEQUENCES_PER_STEP):
                    few_NL = block_NL[at : at + SEQUENCES_PER_STEP]
                    hashes_NW = window_hashes(few_NL, self._window_tokens)
                    self._append(hashes_NW, start, files)
                    start += len(few_NL)
            for file in files:
                file.seek(0)
                records = np.fromfile(file, RECORD)
                file.close()
                hashes = np.ascontiguousarray(records["hash"])
                order = np.argsort(hashes)
                self._extents.append((self._file.tell(), len(records)))
                hashes[order].tofile(self._file)
                records["owner"][order].tofile(self._file)

    def _append(self, hashes_NW: Hashes, start: int, files: Sequence[IO[bytes]]) -> None:
        hashes = hashes_NW.reshape(-1)
        if have_numba(None):
            from pipelines.data.overlap import kernels as window_kernels

            window_kernels.mark_hashes(hashes, self._filter, self._shift)
        else:
            np.bitwise_or.at(self._filter, hashes >> self._shift, bits_of(hashes))
        order, bounds = self._by_block(hashes)
        records = np.empty(len(hashes), RECORD)
        records["hash"] = hashes[order]
        records["owner"] = start + order // hashes_NW.shape[1]
        for file, first, last in zip(files, bounds[:-1], bounds[1:], strict=True):
            records[first:last].tofile(file)

    def _by_block(self, hashes: Hashes) -> tuple[Integers, Integers]:
        """Order hashes by their block; also return where each block starts in that order."""
        # By the lower bits: the upper ones choose the word of the filter and sort a block.
        low = (hashes & np.uint64(0xFFFFFFFF)) * np.uint64(self._num_blocks) >> np.uint64(32)
        block = low.astype(np.uint16)
        order = np.argsort(block, kind="stable")
        return order, np.searchsorted(block[order], np.arange(self._num_blocks + 1))

    def _hashes(self, block: int) -> Hashes:
        start, size = self._extents[block]
        self._file.seek(start)
        return np.fromfile(self._file, np.uint64, size)

    def _owners(self, block: int) -> npt.NDArray[np.int32]:
        start, size = self._extents[block]
        self._file.seek(start + size * np.dtype(np.uint64).itemsize)
        return np.fromfile(self._file, np.int32, size)

    def count(self, tokens_NL: Tokens, *, use_numba: bool | None = None) -> Integers:
        """Count the windows of each sequence that are in the index.

        Args:
            tokens_NL: (N, L) uint16.
            use_numba: Whether to compile the loop; by default if numba is installed.

        Returns:
            (N,) int64.
        """
        counts_N = np.zeros(len(tokens_NL), np.int64)
        for hashes_C, rows_C in self._candidates(tokens_NL, use_numba):
            order, bounds = self._by_block(hashes_C)
            for block in np.flatnonzero(np.diff(bounds)).tolist():
                mine = order[bounds[block] : bounds[block + 1]]
                known = self._hashes(block)
                position = np.searchsorted(known, hashes_C[mine])
                found = known[np.minimum(position, len(known) - 1)] == hashes_C[mine]
                counts_N += np.bincount(rows_C[mine[found]], minlength=len(counts_N))
        return counts_N

    def _candidates(
        self, tokens_NL: Tokens, use_numba: bool | None
    ) -> Iterator[tuple[Hashes, npt.NDArray[np.int32]]]:
        """Yield the hashes of windows that pass the filter, and the rows that they belong to."""
        if not have_numba(use_numba):
            for at in range(0, len(tokens_NL), SEQUENCES_PER_STEP):
                hashes_NW = window_hashes(
                    tokens_NL[at : at + SEQUENCES_PER_STEP], self._window_tokens
                )
                bits_NW = bits_of(hashes_NW)
                rows, columns = np.nonzero(
                    self._filter[hashes_NW >> self._shift] & bits_NW == bits_NW
                )
                yield hashes_NW[rows, columns], (at + rows).astype(np.int32)
            return
        from pipelines.data.overlap import kernels as window_kernels

        hashes_C = np.empty(max(CANDIDATES_PER_STEP, tokens_NL.shape[1]), np.uint64)
        rows_C = np.empty(len(hashes_C), np.int32)
        row = 0
        while row < len(tokens_NL):
            row, found = window_kernels.candidates(
                tokens_NL, row, self._window_tokens, MULTIPLIER, self._filter, self._shift,
                hashes_C, rows_C,
            )  # fmt: skip
            yield hashes_C[:found], rows_C[:found]

    def main_owners(self, tokens_NL: Tokens) -> Integers:
        """Find the sequence of the index with most windows of each one; the first of several.

        Args:
            tokens_NL: (N, L) uint16; each has at least one window in the index.

        Returns:
            (N,) int64.
        """
        hashes_NW = window_hashes(tokens_NL, self._window_tokens)
        owners: list[list[npt.NDArray[np.int32]]] = [[] for _ in tokens_NL]
        for block in range(self._num_blocks if len(tokens_NL) else 0):
            known, owner = self._hashes(block), self._owners(block)
            for mine, hashes_W in zip(owners, hashes_NW, strict=True):
                first = np.searchsorted(known, hashes_W, side="left")
                last = np.searchsorted(known, hashes_W, side="right")
                mine.append(owner[first[last - first == 1]])
                mine += [
                    np.unique(owner[first[window] : last[window]])
                    for window in np.flatnonzero(last - first > 1).tolist()
                ]
        main = np.empty(len(owners), np.int64)
        for row, mine in enumerate(owners):
            found, counts = np.unique(np.concatenate(mine), return_counts=True)
            main[row] = found[counts.argmax()]
        return main


def bits_of(hashes: Hashes) -> Hashes:
    """The two bits that a window sets in its word of the filter."""
    one, last = np.uint64(1), np.uint64(63)
    return one << (hashes & last) | one << (hashes >> np.uint64(6) & last)


def window_hashes(
    tokens_NL: Tokens, window_tokens: int, *, use_numba: bool | None = None
) -> Hashes:
    """Hash every window of consecutive tokens.

    Args:
        tokens_NL: (N, L) uint16.
        window_tokens: Tokens per window; at most L.
        use_numba: Whether to compile the loop; by default if numba is installed.

    Returns:
        (N, W) uint64 with W = L - window_tokens + 1.
    """
    num_windows = tokens_NL.shape[1] - window_tokens + 1
    hashes_NW = np.zeros((len(tokens_NL), num_windows), dtype=np.uint64)
    if have_numba(use_numba):
        from pipelines.data.overlap import kernels as window_kernels

        window_kernels.hash_windows(tokens_NL, window_tokens, MULTIPLIER, hashes_NW)
        return hashes_NW
    for offset in range(window_tokens):
        # Multiply-xorshift, a bijection for each token, in place: these arrays are large.
        hashes_NW += tokens_NL[:, offset : offset + num_windows]
        hashes_NW *= MULTIPLIER
        hashes_NW ^= hashes_NW >> np.uint64(29)
    return hashes_NW
