"""Measure how much of each held-out unit an earlier split has, and uncover those above a bound.

A unit is a held-out document or sequence. Its share is that of its windows which the earlier
split as a whole has, however many documents they come from.

Shape legend: U units (documents, then sequences), H hits, N sequences of the earlier split.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.data.overlap.hits import Records, read_hits
from pipelines.data.overlap.window_index import NO_SEQUENCE, WindowIndex
from pipelines.data.overlap.windows import Integers

# A unit with fewer windows has no share: the fewer, the more of them are commonplace.
MIN_WINDOWS = 24
# 12 bytes each; units that need more are uncovered a few at a time.
HITS_PER_ROUND = 1 << 21

Flags = npt.NDArray[np.bool_]
# Sequences to remove, the held-out document and its share.
Found = tuple[Integers, int, float]


@dataclass(frozen=True)
class Coverage:
    """What an earlier split has of held-out text.

    Args:
        index: The held-out windows.
        scans: The hits of the earlier split.
        max_share: The bound.
    """

    index: WindowIndex
    scans: Sequence[Path]
    max_share: float

    @property
    def windows(self) -> Integers:
        """(U,) int64, the windows of each unit."""
        return np.concatenate([self.index.documents, self.index.sequences])

    def measure(self, kept_N: Flags) -> tuple[Integers, Integers]:
        """Count windows.

        Args:
            kept_N: (N,) bool, the sequences of the earlier split that are left.

        Returns:
            Two (U,) int64: the windows that the earlier split has, and their hits in it.
        """
        counts = np.zeros((2, len(self.windows)), np.int64)
        for block in range(self.index.num_blocks):
            ids, sizes, _ = self._alive(block, kept_N)
            row, places = self.index.expand(block, ids)
            for units, mine in self._units(places):
                counts[0] += np.bincount(units, minlength=counts.shape[1])
                weights = sizes[row[mine]]
                counts[1] += np.bincount(units, weights, counts.shape[1]).astype(np.int64)
        return counts[0], counts[1]

    def above(self, covered_U: Integers) -> Integers:
        """Find the units above the bound."""
        windows_U = self.windows
        return np.flatnonzero((windows_U >= MIN_WINDOWS) & (covered_U > self._allowed(windows_U)))

    def _allowed(self, windows: Integers) -> Integers:
        allowed: Integers = np.floor(self.max_share * windows + 1e-9).astype(np.int64)
        return allowed

    def uncover(self, kept_N: Flags, covered_U: Integers, hits_U: Integers) -> Iterator[Found]:
        """Remove sequences until some of the units above the bound are below it.

        Args:
            kept_N: (N,) bool, the sequences that are left; changed.
            covered_U: (U,) int64, what `measure` returned.
            hits_U: (U,) int64, likewise.

        Yields:
            The sequences removed for a unit.
        """
        above = self.above(covered_U)
        units = above[: max(1, int(np.searchsorted(np.cumsum(hits_U[above]), HITS_PER_ROUND)))]
        windows, hits = self._windows_of(units, kept_N)
        hits = hits[np.argsort(hits["id"], kind="stable")]
        for unit in np.split(windows, np.flatnonzero(np.diff(windows["unit"])) + 1):
            number = int(unit["unit"][0])
            size = int(self.windows[number])
            ids, weights = np.unique(unit["id"], return_counts=True)
            first, last = (np.searchsorted(hits["id"], ids, side) for side in ("left", "right"))
            rows = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
            owners = np.repeat(np.arange(len(ids)), last - first)
            gone = _uncover(hits[rows], owners, weights, int(self._allowed(np.array(size))), kept_N)
            if len(gone):
                yield gone, int(unit["document"][0]), int(covered_U[number]) / size

    def _alive(self, block: int, kept_N: Flags) -> tuple[Integers, Integers, Records]:
        """The ids of a block that are left, their hits' number, and the hits."""
        hits = read_hits(self.scans, block)
        hits = hits[kept_N[hits["first"]] & kept_N[hits["last"]]]
        ids, sizes = np.unique(hits["id"], return_counts=True)
        return ids.astype(np.int64), sizes, hits

    def _units(self, places: Records) -> Iterator[tuple[Integers, Integers]]:
        """Yield the units that places belong to, and the places."""
        yield places["document"].astype(np.int64), np.arange(len(places))
        mine = np.flatnonzero(places["sequence"] != NO_SEQUENCE)
        yield places["sequence"][mine].astype(np.int64) + len(self.index.documents), mine

    def _windows_of(self, units: Integers, kept_N: Flags) -> tuple[Records, Records]:
        """Collect the windows of some units, ordered by unit, and their hits."""
        wanted_U = np.zeros(len(self.windows), np.bool_)
        wanted_U[units] = True
        dtype = np.dtype([("unit", "<i8"), ("id", "<u4"), ("document", "<u4")])
        windows, hits = [np.empty(0, dtype)], []
        for block in range(self.index.num_blocks):
            ids, _, alive = self._alive(block, kept_N)
            row, places = self.index.expand(block, ids)
            needed = np.zeros(len(ids), np.bool_)
            for unit, mine in self._units(places):
                chosen = np.flatnonzero(wanted_U[unit])
                found = np.empty(len(chosen), dtype)
                found["unit"], found["id"] = unit[chosen], ids[row[mine[chosen]]]
                found["document"] = places["document"][mine[chosen]]
                windows.append(found)
                needed[row[mine[chosen]]] = True
            hits.append(alive[np.isin(alive["id"], ids[needed])])
        table = np.concatenate(windows)
        return table[np.argsort(table["unit"], kind="stable")], np.concatenate(hits)


def _uncover(
    hits_H: Records, owners_H: Integers, weights: Integers, allowed: int, kept_N: Flags
) -> Integers:
    """Uncover the rarest windows of a unit until at most `allowed` are covered.

    Args:
        hits_H: (H,) `HIT`, the hits of the windows.
        owners_H: (H,) int64, the distinct window that each belongs to.
        weights: How often the unit has each distinct window.
        allowed: Windows that may stay.
        kept_N: (N,) bool; changed.

    Returns:
        The sequences removed.
    """
    removed: list[Integers] = []
    while True:
        alive_H = kept_N[hits_H["first"]] & kept_N[hits_H["last"]]
        hits_H, owners_H = hits_H[alive_H], owners_H[alive_H]
        sources = np.unique(np.stack([owners_H, hits_H["first"].astype(np.int64)]), axis=1)
        counts = np.bincount(sources[0], minlength=len(weights))
        if weights[counts > 0].sum() <= allowed:
            return np.concatenate([np.empty(0, np.int64), *removed])
        fewest = counts[counts > 0].min()
        if fewest == 1:
            # Of the sequences that alone have some windows, the one with most of them.
            alone = np.flatnonzero(counts[sources[0]] == 1)
            names, name_of = np.unique(sources[1, alone], return_inverse=True)
            gain = np.bincount(name_of, weights[sources[0, alone]])
            gone = names[[gain.argmax()]]
        else:
            gone = sources[1, sources[0] == np.flatnonzero(counts == fewest)[0]]
        kept_N[gone] = False
        removed.append(gone)
