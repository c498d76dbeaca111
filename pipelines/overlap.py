"""Which sequences occur in other splits: exactly, or in most of their wording.

Near overlap is containment (Broder, 1997): the share of a sequence's windows of a
few tokens that occur somewhere in the reference. It sees a shifted or edited copy
that no exact comparison can.

Shape legend: N sequences, M reference sequences, L length, W windows of a sequence.
"""

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from tempfile import TemporaryFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.compilation import have_numba
from pipelines.shards import TOKEN_DTYPE, SequenceFiles, Tokens, fixed_binary

Hashes = npt.NDArray[np.uint64]

KEY_TOKENS = 4
KEY_BITS = 24
KEY_SHIFT = np.uint64(64 - KEY_BITS)
# 20 bytes each while they are looked at.
WINDOWS_A_BLOCK = 3 << 19
SEQUENCES_A_STEP = 1024
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Match:
    """A sequence that occurs in a reference split.

    Args:
        sequence: Its row among the sequences that were looked up.
        split: The reference split.
        matched: Row of the reference sequence: the equal one, or the one with
            most of the windows; -1 for a title, which is no sequence's.
        method: `exact`, `near` or `title`.
        containment: Share of the windows that occur in the reference, in [0, 1].
    """

    sequence: int
    split: str
    matched: int
    method: str
    containment: float


class _Block:
    """Some of the windows of a reference: hashes that are sorted, and whose they are."""

    def __init__(self, hashes: Hashes, owners: npt.NDArray[np.int32]) -> None:
        self.hashes = hashes
        self.owners = owners
        # Eight places a hash.
        bits = max(10, (8 * len(hashes)).bit_length())
        self.shift = np.uint64(64 - bits)
        self.is_used = np.zeros(1 << bits, dtype=bool)
        self.is_used[hashes >> self.shift] = True


class Reference:
    """The sequences that training must not see.

    Windows are held as hashes of 64 bits, a block of them at a time where there are many
    (the others wait in a temporary file), so that memory does not grow with the reference.

    Args:
        splits: (M, L) uint16 a split, in memory or in files; where several have a sequence,
            a match names the first.
        window_tokens: Tokens a window; at most L.
        windows_a_block: How many windows are held at a time, about.
    """

    def __init__(
        self,
        splits: Mapping[str, Tokens | SequenceFiles],
        window_tokens: int,
        *,
        windows_a_block: int = WINDOWS_A_BLOCK,
    ) -> None:
        self._window_tokens = window_tokens
        self._splits = splits
        self._ends = np.cumsum([len(sequences) for sequences in splits.values()])
        windows = sum(block.shape[0] * self._num_windows(block) for block in self._sequences())
        self._num_blocks = max(1, -(-windows // windows_a_block))
        self._in_memory = None if self._num_blocks > 1 else self._make_block(0)
        if self._num_blocks > 1:
            self._file = TemporaryFile()  # noqa: SIM115 - it lives as long as this object
            weakref.finalize(self, self._file.close)
            self._places = [self._store(part) for part in range(self._num_blocks)]

    def _num_windows(self, tokens_NL: Tokens) -> int:
        return int(tokens_NL.shape[1]) - self._window_tokens + 1

    def _sequences(self) -> Iterator[Tokens]:
        for sequences in self._splits.values():
            yield from [sequences] if isinstance(sequences, np.ndarray) else sequences.blocks()

    def _make_block(self, part: int) -> _Block:
        hashes, owners, start = [np.empty(0, np.uint64)], [np.empty(0, np.int32)], 0
        for block_ML in self._sequences():
            for at in range(0, len(block_ML), SEQUENCES_A_STEP):
                few_ML = block_ML[at : at + SEQUENCES_A_STEP]
                hashes_W = window_hashes(few_ML, self._window_tokens).reshape(-1)
                mine = np.flatnonzero(part_of(hashes_W, self._num_blocks) == part)
                hashes.append(hashes_W[mine])
                owners.append((start + mine // self._num_windows(few_ML)).astype(np.int32))
                start += len(few_ML)
        flat = np.concatenate(hashes)
        hashes.clear()
        order = np.argsort(flat, kind="stable")
        return _Block(flat[order], np.concatenate(owners)[order])

    def _store(self, part: int) -> tuple[int, int]:
        block = self._make_block(part)
        start = self._file.tell()
        block.hashes.tofile(self._file)
        block.owners.tofile(self._file)
        return start, len(block.hashes)

    def _blocks(self) -> Iterator[_Block]:
        if self._in_memory is not None:
            yield self._in_memory
            return
        for start, size in self._places:
            self._file.seek(start)
            hashes = np.fromfile(self._file, np.uint64, size)
            yield _Block(hashes, np.fromfile(self._file, np.int32, size))

    def matches(self, tokens_NL: Tokens, *, max_containment: float) -> list[Match]:
        """Find the sequences that occur in the reference.

        Args:
            tokens_NL: (N, L) uint16.
            max_containment: A sequence with a larger share of known windows is near.

        Returns:
            At most one match a sequence, exact before near, in the order of the rows.
        """
        if not len(tokens_NL) or not len(self._ends) or not self._ends[-1]:
            return []
        equal_N = self._equal(tokens_NL)
        containment_N = self.known_windows(tokens_NL) / self._num_windows(tokens_NL)
        rows = np.flatnonzero((equal_N >= 0) | (containment_N > max_containment))
        owners = np.where(equal_N[rows] >= 0, equal_N[rows], self._main_owners(tokens_NL[rows]))
        names = list(self._splits)
        split_of = np.searchsorted(self._ends, owners, side="right")
        starts = np.append(0, self._ends)[split_of]
        return [
            Match(
                int(row),
                names[split],
                int(owner - start),
                "exact" if equal_N[row] >= 0 else "near",
                float(containment_N[row]),
            )
            for row, owner, split, start in zip(rows, owners, split_of, starts, strict=True)
        ]

    def _equal(self, tokens_NL: Tokens) -> npt.NDArray[np.int64]:
        """(N,) int64, the first equal sequence of the reference, or -1."""
        equal_N = np.full(len(tokens_NL), -1, np.int64)
        start = 0
        for block_ML in self._sequences():
            found_N = exact_matches(fixed_binary(tokens_NL), fixed_binary(block_ML))
            is_new_N = (equal_N < 0) & (found_N >= 0)
            equal_N[is_new_N] = found_N[is_new_N] + start
            start += len(block_ML)
        return equal_N

    def known_windows(
        self, tokens_NL: Tokens, *, use_numba: bool | None = None
    ) -> npt.NDArray[np.int64]:
        """Count the windows of each sequence that occur in the reference.

        Args:
            tokens_NL: (N, L) uint16.
            use_numba: Whether to compile the loop; by default if numba is installed.

        Returns:
            (N,) int64.
        """
        counts_N = np.zeros(len(tokens_NL), np.int64)
        for part, block in enumerate(self._blocks()):
            if have_numba(use_numba):
                from pipelines import window_kernels

                window_kernels.known_windows(
                    tokens_NL, self._window_tokens, MULTIPLIER, block.hashes, block.is_used,
                    block.shift, np.uint64(part), np.uint64(self._num_blocks), counts_N,
                )  # fmt: skip
                continue
            hashes_NW = window_hashes(tokens_NL, self._window_tokens)
            known_NW = block.is_used[hashes_NW >> block.shift]
            candidates = hashes_NW[known_NW]
            place = np.minimum(np.searchsorted(block.hashes, candidates), len(block.hashes) - 1)
            known_NW[known_NW] = block.hashes[place] == candidates
            counts_N += known_NW.sum(axis=1, dtype=np.int64)
        return counts_N

    def _main_owners(self, tokens_NL: Tokens) -> npt.NDArray[np.int64]:
        """The reference sequence that has most of each one's windows; the first of several."""
        hashes_NW = window_hashes(tokens_NL, self._window_tokens)
        owners: list[list[npt.NDArray[np.int32]]] = [[] for _ in tokens_NL]
        for block in self._blocks():
            for mine, hashes_W in zip(owners, hashes_NW, strict=True):
                first = np.searchsorted(block.hashes, hashes_W, side="left")
                last = np.searchsorted(block.hashes, hashes_W, side="right")
                mine += [
                    np.unique(block.owners[start:stop])
                    for start, stop in zip(first, last, strict=True)
                    if start < stop
                ]
        main = np.empty(len(owners), np.int64)
        for row, mine in enumerate(owners):
            found, counts = np.unique(np.concatenate(mine), return_counts=True)
            main[row] = found[counts.argmax()]
        return main


def part_of(hashes: Hashes, parts: int) -> Hashes:
    """The block of each hash, by its lower bits: the upper ones are looked up in the block."""
    low: Hashes = (hashes & np.uint64(0xFFFFFFFF)) * np.uint64(parts) >> np.uint64(32)
    return low


def exact_matches(sequences: pa.Array, reference: pa.Array) -> npt.NDArray[np.int64]:
    """Look up sequences by their bytes.

    Args:
        sequences: N values, fixed-size binary.
        reference: M values of the same width.

    Returns:
        (N,) int64, the first equal row of the reference, or -1.
    """
    keys_N, keys_M = _keys(sequences), _keys(reference)
    # Equal sequences have equal keys. Most rows are ruled out by one bit of theirs.
    is_used = np.zeros(1 << KEY_BITS, dtype=bool)
    is_used[keys_M >> KEY_SHIFT] = True
    candidates = np.flatnonzero(is_used[keys_N >> KEY_SHIFT])
    rows = np.full(len(sequences), -1, dtype=np.int64)
    places = np.flatnonzero(np.isin(keys_M, keys_N[candidates]))
    if not len(places):
        return rows
    # What is left is compared in full.
    found = pc.index_in(
        sequences.take(pa.array(candidates)), value_set=reference.take(pa.array(places))
    )
    matched = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
    rows[candidates] = np.where(matched >= 0, places[matched], -1)
    return rows


def _keys(sequences: pa.Array) -> Hashes:
    """A few tokens of every sequence, spread over it, as one uint64."""
    width = sequences.type.byte_width // TOKEN_DTYPE.itemsize
    flat = np.frombuffer(sequences.buffers()[1], dtype=TOKEN_DTYPE)
    tokens_NL = flat[sequences.offset * width :][: len(sequences) * width].reshape(-1, width)
    keys = np.zeros(len(sequences), dtype=np.uint64)
    for column in np.linspace(0, width - 1, KEY_TOKENS).astype(int).tolist():
        keys += tokens_NL[:, column]
        keys *= MULTIPLIER
    return keys


def window_hashes(tokens_NL: Tokens, window_tokens: int) -> Hashes:
    """Hash every window of consecutive tokens.

    Args:
        tokens_NL: (N, L) uint16.
        window_tokens: Tokens a window; at most L.

    Returns:
        (N, W) uint64 with W = L - window_tokens + 1.
    """
    num_windows = tokens_NL.shape[1] - window_tokens + 1
    hashes_NW = np.zeros((len(tokens_NL), num_windows), dtype=np.uint64)
    for offset in range(window_tokens):
        # Multiply-xorshift, a bijection for each token, in place: these arrays are large.
        hashes_NW += tokens_NL[:, offset : offset + num_windows]
        hashes_NW *= MULTIPLIER
        hashes_NW ^= hashes_NW >> np.uint64(29)
    return hashes_NW
