"""Find equal sequences by a key of a few tokens, and compare in full those with equal keys.

Shape legend: N sequences, M held-out sequences, L length, C candidates.
"""

from collections.abc import Callable, Iterable

import numpy as np

from pipelines.data.overlap.windows import MULTIPLIER, Hashes, Integers
from pipelines.data.shards import Tokens

KEY_TOKENS = 4
KEY_BITS = 24
KEY_SHIFT = np.uint64(64 - KEY_BITS)


class HeldSequences:
    """Held-out sequences, of which only the keys are in memory.

    Args:
        blocks: (M', L) uint16 each, M sequences in all; read once.
        gather: Reads some of them by number: (C,) int64 to (C, L) uint16.
        removed: Numbers of those that are held out no longer.
    """

    def __init__(
        self,
        blocks: Iterable[Tokens],
        gather: Callable[[Integers], Tokens],
        removed: Integers | None = None,
    ) -> None:
        keys_M = np.concatenate([np.empty(0, np.uint64), *map(_keys, blocks)])
        order_M = np.argsort(keys_M, kind="stable")
        self._rows_M = order_M[np.isin(order_M, [] if removed is None else removed, invert=True)]
        self._keys_M = keys_M[self._rows_M]
        self._gather = gather
        # One bit per key rules out most sequences.
        self._is_used = np.zeros(1 << KEY_BITS, dtype=bool)
        self._is_used[keys_M >> KEY_SHIFT] = True

    def matches(self, tokens_NL: Tokens) -> Integers:
        """Find the first equal held-out sequence of each sequence.

        Args:
            tokens_NL: (N, L) uint16.

        Returns:
            (N,) int64, the number of the held-out sequence, or -1.
        """
        matched_N = np.full(len(tokens_NL), -1, np.int64)
        keys_N = _keys(tokens_NL)
        mine = np.flatnonzero(self._is_used[keys_N >> KEY_SHIFT])
        first, last = (
            np.searchsorted(self._keys_M, keys_N[mine], side) for side in ("left", "right")
        )
        # Few sequences have equal keys and are not equal.
        for turn in range(int((last - first).max(initial=0))):
            open_C = np.flatnonzero((first + turn < last) & (matched_N[mine] < 0))
            rows_C = self._rows_M[first[open_C] + turn]
            equal_C = (self._gather(rows_C) == tokens_NL[mine[open_C]]).all(axis=1)
            matched_N[mine[open_C[equal_C]]] = rows_C[equal_C]
        return matched_N


def _keys(tokens_NL: Tokens) -> Hashes:
    """Combine a few tokens of every sequence, spread over it, into one uint64."""
    keys_N = np.zeros(len(tokens_NL), dtype=np.uint64)
    for column in np.linspace(0, tokens_NL.shape[1] - 1, KEY_TOKENS).astype(int).tolist():
        keys_N += tokens_NL[:, column]
        keys_N *= MULTIPLIER
    return keys_N
