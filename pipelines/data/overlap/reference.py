"""Find sequences that occur in other splits, exactly or with most of their wording.

Near overlap is containment (Broder, 1997): the share of a sequence's windows of a
few tokens that occur somewhere in the reference. It finds shifted and edited
copies, which an exact comparison cannot.

Shape legend: N sequences, M reference sequences, L length, W windows of a sequence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.overlap.window_index import MULTIPLIER, WINDOWS_PER_BLOCK, Hashes, WindowIndex
from pipelines.data.shards import TOKEN_DTYPE, SequenceFiles, Tokens, fixed_binary

KEY_TOKENS = 4
KEY_BITS = 24
KEY_SHIFT = np.uint64(64 - KEY_BITS)


@dataclass(frozen=True)
class Match:
    """A sequence that occurs in a reference split.

    Args:
        sequence: Its row among the sequences that were looked up.
        split: The reference split.
        matched: Row of the reference sequence: the equal one, or the one with
            most of the windows; -1 for a title, which belongs to no sequence.
        method: `exact`, `near` or `title`.
        containment: Share of the windows that occur in the reference, in [0, 1].
    """

    sequence: int
    split: str
    matched: int
    method: str
    containment: float


class Reference:
    """The sequences that training must not see.

    Args:
        splits: (M, L) uint16 per split, in memory or in files; if several have a sequence,
            a match names the first.
        window_tokens: Tokens per window; at most L.
        windows_per_block: Approximate number of windows per block.
    """

    def __init__(
        self,
        splits: Mapping[str, Tokens | SequenceFiles],
        window_tokens: int,
        *,
        windows_per_block: int = WINDOWS_PER_BLOCK,
    ) -> None:
        self._window_tokens = window_tokens
        self._splits = splits
        self._ends = np.cumsum([len(sequences) for sequences in splits.values()])
        windows = sum(block.shape[0] * self._num_windows(block) for block in self._sequences())
        self._index = WindowIndex(
            self._sequences(), windows, window_tokens, windows_per_block=windows_per_block
        )

    def _num_windows(self, tokens_NL: Tokens) -> int:
        return int(tokens_NL.shape[1]) - self._window_tokens + 1

    def _sequences(self) -> Iterator[Tokens]:
        for sequences in self._splits.values():
            yield from [sequences] if isinstance(sequences, np.ndarray) else sequences

    def matches(self, tokens_NL: Tokens, *, max_containment: float) -> list[Match]:
        """Find the sequences that occur in the reference.

        Args:
            tokens_NL: (N, L) uint16.
            max_containment: A sequence with a larger share of known windows is near.

        Returns:
            At most one match per sequence, exact before near, in the order of the rows.
        """
        if not len(tokens_NL) or not len(self._ends) or not self._ends[-1]:
            return []
        containment_N = self._index.count(tokens_NL) / self._num_windows(tokens_NL)
        equal_N = np.full(len(tokens_NL), -1, np.int64)
        # An equal sequence has all of its windows in the reference.
        whole = np.flatnonzero(containment_N == 1.0)
        equal_N[whole] = self._equal(tokens_NL[whole])
        rows = np.flatnonzero((equal_N >= 0) | (containment_N > max_containment))
        owners = equal_N[rows]
        owners[owners < 0] = self._index.main_owners(tokens_NL[rows[owners < 0]])
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
        for block_ML in self._sequences() if len(tokens_NL) else ():
            found_N = exact_matches(fixed_binary(tokens_NL), fixed_binary(block_ML))
            is_new_N = (equal_N < 0) & (found_N >= 0)
            equal_N[is_new_N] = found_N[is_new_N] + start
            start += len(block_ML)
        return equal_N


def exact_matches(sequences: pa.Array, reference: pa.Array) -> npt.NDArray[np.int64]:
    """Look up sequences by their bytes.

    Args:
        sequences: N values, fixed-size binary.
        reference: M values of the same width.

    Returns:
        (N,) int64, the first equal row of the reference, or -1.
    """
    keys_N, keys_M = _keys(sequences), _keys(reference)
    # Equal sequences have equal keys. One bit per key rules out most rows.
    is_used = np.zeros(1 << KEY_BITS, dtype=bool)
    is_used[keys_M >> KEY_SHIFT] = True
    candidates = np.flatnonzero(is_used[keys_N >> KEY_SHIFT])
    rows = np.full(len(sequences), -1, dtype=np.int64)
    rows_M = np.flatnonzero(np.isin(keys_M, keys_N[candidates]))
    if not len(rows_M):
        return rows
    # The rest is compared in full.
    found = pc.index_in(
        sequences.take(pa.array(candidates)), value_set=reference.take(pa.array(rows_M))
    )
    matched = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
    rows[candidates] = np.where(matched >= 0, rows_M[matched], -1)
    return rows


def _keys(sequences: pa.Array) -> Hashes:
    """Combine a few tokens of every sequence, spread over it, into one uint64."""
    width = sequences.type.byte_width // TOKEN_DTYPE.itemsize
    flat = np.frombuffer(sequences.buffers()[1], dtype=TOKEN_DTYPE)
    tokens_NL = flat[sequences.offset * width :][: len(sequences) * width].reshape(-1, width)
    keys = np.zeros(len(sequences), dtype=np.uint64)
    for column in np.linspace(0, width - 1, KEY_TOKENS).astype(int).tolist():
        keys += tokens_NL[:, column]
        keys *= MULTIPLIER
    return keys
