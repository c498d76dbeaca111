"""Which sequences occur in other splits: exactly, or in most of their wording.

Near overlap is containment (Broder, 1997): the share of a sequence's windows of a
few tokens that occur somewhere in the reference. It sees a shifted or edited copy
that no exact comparison can.

Shape legend: N sequences, M reference sequences, L length, W windows of a sequence.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.compilation import have_numba
from pipelines.shards import TOKEN_DTYPE, Tokens, fixed_binary

Hashes = npt.NDArray[np.uint64]

KEY_TOKENS = 4
KEY_BITS = 24
KEY_SHIFT = np.uint64(64 - KEY_BITS)
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


class Reference:
    """The sequences that training must not see.

    Args:
        splits: (M, L) uint16 a split; where several have a sequence, a match names the first.
        window_tokens: Tokens a window; at most L.
    """

    def __init__(self, splits: dict[str, Tokens], window_tokens: int) -> None:
        self._window_tokens = window_tokens
        self._rows = [(split, row) for split in splits for row in range(len(splits[split]))]
        nothing = np.empty((0, window_tokens), dtype=np.uint16)
        tokens_ML = np.concatenate(list(splits.values())) if splits else nothing
        self._sequences = fixed_binary(tokens_ML)
        hashes_MW = window_hashes(tokens_ML, window_tokens)
        flat = hashes_MW.reshape(-1)
        order = np.argsort(flat, kind="stable")
        self._hashes = flat[order]
        self._owners = (order // hashes_MW.shape[1]).astype(np.int32)
        # Eight places a hash, but never more than 128 MB.
        bits = min(27, max(10, (8 * len(flat)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._is_used = np.zeros(1 << bits, dtype=bool)
        self._is_used[self._hashes >> self._shift] = True

    def matches(self, tokens_NL: Tokens, *, max_containment: float) -> list[Match]:
        """Find the sequences that occur in the reference.

        Args:
            tokens_NL: (N, L) uint16.
            max_containment: A sequence with a larger share of known windows is near.

        Returns:
            At most one match a sequence, exact before near, in the order of the rows.
        """
        if not len(tokens_NL) or not self._rows:
            return []
        equal_N = exact_matches(fixed_binary(tokens_NL), self._sequences)
        num_windows = tokens_NL.shape[1] - self._window_tokens + 1
        containment_N = self.known_windows(tokens_NL) / num_windows
        found = []
        for row in np.flatnonzero((equal_N >= 0) | (containment_N > max_containment)):
            exact = equal_N[row] >= 0
            hashes = window_hashes(tokens_NL[row : row + 1], self._window_tokens)[0]
            owner = equal_N[row] if exact else self._main_owner(hashes)
            split, matched = self._rows[owner]
            method = "exact" if exact else "near"
            found.append(Match(int(row), split, matched, method, float(containment_N[row])))
        return found

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
        if have_numba(use_numba):
            from pipelines import window_kernels

            counts_N = np.empty(len(tokens_NL), np.int64)
            window_kernels.known_windows(
                tokens_NL, self._window_tokens, MULTIPLIER, self._hashes,
                self._is_used, self._shift, counts_N,
            )  # fmt: skip
            return counts_N
        hashes_NW = window_hashes(tokens_NL, self._window_tokens)
        known_NW = self._is_used[hashes_NW >> self._shift]
        candidates = hashes_NW[known_NW]
        place = np.minimum(np.searchsorted(self._hashes, candidates), len(self._hashes) - 1)
        known_NW[known_NW] = self._hashes[place] == candidates
        sums_N: npt.NDArray[np.int64] = known_NW.sum(axis=1, dtype=np.int64)
        return sums_N

    def _main_owner(self, hashes: Hashes) -> int:
        """The reference sequence that has most of these windows; the first of several."""
        first = np.searchsorted(self._hashes, hashes, side="left")
        last = np.searchsorted(self._hashes, hashes, side="right")
        owners = [
            np.unique(self._owners[start:stop]) for start, stop in zip(first, last, strict=True)
        ]
        return int(np.bincount(np.concatenate(owners)).argmax())


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
