"""Decide which sequences of an earlier split go, and why.

exact      a held-out sequence is equal
title      a document that it has a part of shares a title and an excerpt's worth of windows with
           held-out ones
excerpt    it has a run of rare wording of one held-out document
near       it has a part of a document that shares rare wording all over a held-out one, or half
           of it
sequence   more than the bound of its own windows are held out
coverage   it has windows of a held-out document or sequence of which this split as a whole has
           more than the bound; rare windows are uncovered first
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.data.overlap.copies import find_excerpts, is_near_copy, shared_windows
from pipelines.data.overlap.coverage import MIN_WINDOWS, Coverage, Flags
from pipelines.data.overlap.exact import HeldSequences
from pipelines.data.overlap.hits import PAIR, Records, num_groups, read_group
from pipelines.data.overlap.stream import document_rows
from pipelines.data.overlap.titles import same_titles
from pipelines.data.overlap.window_index import HeldOut, WindowIndex
from pipelines.data.overlap.windows import Integers
from pipelines.data.shards import ShardReader

# The judge computes the keys of what is left, and a bracketed mark that has lost its other half
# is text for it: so what the judge measures may lie a little above what is measured here.
SAFETY = 0.95
METHODS = ("exact", "title", "excerpt", "near", "sequence", "coverage")
# No document: the one that is meant has to be found.
UNKNOWN = -1
# A sequence to remove: the index of the method, the held-out document, the document of the
# split, and the share that decided. It is that of the held-out document's windows which this
# document has; for `sequence` that of its own windows, for `coverage` that of the unit's.
VERDICT = np.dtype(
    [
        ("sequence", "<i8"),
        ("method", "<i1"),
        ("held_document", "<i8"),
        ("document", "<i8"),
        ("share", "<f8"),
    ]
)


@dataclass(frozen=True)
class Compared:
    """What the workers found about an earlier split.

    Args:
        reader: The sequences of the split before anything is removed.
        held_out: What it is compared with.
        index: The windows of the held-out text.
        scans: Hits by document (`hits.scan`).
        joins: Hits with their places (`hits.join`).
        excerpt_windows: Fewest windows of an excerpt.
        max_share: The bound.
    """

    reader: ShardReader
    held_out: HeldOut
    index: WindowIndex
    scans: Sequence[Path]
    joins: Sequence[Path]
    excerpt_windows: int
    max_share: float


class Verdicts:
    """The sequences of a split that go.

    Args:
        num_sequences: Sequences of the split.
    """

    def __init__(self, num_sequences: int) -> None:
        self.kept_N: Flags = np.ones(num_sequences, np.bool_)
        self._found: list[Records] = [np.empty(0, VERDICT)]

    @property
    def found(self) -> Records:
        """`VERDICT`, one per sequence that goes, ascending."""
        found = np.concatenate(self._found)
        return found[np.argsort(found["sequence"])]

    def add(
        self,
        method: str,
        sequences: Integers,
        *,
        held_document: Integers | int = UNKNOWN,
        document: Integers | int = UNKNOWN,
        share: npt.NDArray[np.float64] | float,
    ) -> None:
        """Remove sequences; the largest share counts if one is named repeatedly."""
        found = np.empty(len(sequences), VERDICT)
        found["sequence"], found["method"] = sequences, METHODS.index(method)
        found["held_document"], found["document"], found["share"] = held_document, document, share
        found = found[self.kept_N[sequences]]
        found = found[np.lexsort((-found["share"], found["sequence"]))]
        is_first = np.append(True, np.diff(found["sequence"]) != 0)[: len(found)]
        self.kept_N[sequences] = False
        self._found.append(found[is_first])


def decide(compared: Compared) -> tuple[Verdicts, list[Integers]]:
    """Decide which sequences go.

    Args:
        compared: What the workers found.

    Returns:
        The sequences; and for every held-out unit, (U,) int64, how many of its windows the
        split has before and after that.
    """
    verdicts = Verdicts(len(compared.reader))
    coverage = Coverage(compared.index, compared.scans, SAFETY * compared.max_share)
    before_U, _ = coverage.measure(verdicts.kept_N)
    _add_exact(compared, verdicts)
    _add_titles(compared, verdicts)
    _add_copies(compared, verdicts)
    _add_sequences(compared, verdicts)
    while True:
        covered_U, hits_U = coverage.measure(verdicts.kept_N)
        if not len(coverage.above(covered_U)):
            return verdicts, [before_U, covered_U]
        for sequences, held_document, share in coverage.uncover(
            verdicts.kept_N.copy(), covered_U, hits_U
        ):
            verdicts.add("coverage", sequences, held_document=held_document, share=share)


def _add_exact(compared: Compared, verdicts: Verdicts) -> None:
    held_out, starts = compared.held_out, compared.held_out.document_starts()
    held = HeldSequences(
        held_out.files(),
        # Mapped anew every time: pages that were read before count as memory of the process.
        lambda rows: held_out.files().gather(rows),
        held_out.removed_sequences(),
    )
    first = 0
    for block_NL in compared.reader:
        matched_N = held.matches(block_NL)
        rows = np.flatnonzero(matched_N >= 0)
        documents = np.searchsorted(starts, matched_N[rows] * held_out.length, "right") - 1
        verdicts.add("exact", first + rows, held_document=documents, share=1.0)
        first += len(block_NL)


def _add_copies(compared: Compared, verdicts: Verdicts) -> None:
    windows = compared.index.documents
    for group in range(num_groups(compared.index)):
        read = (read_group(path, "pairs", PAIR, group) for path in compared.joins)
        pairs = np.concatenate([np.empty(0, PAIR), *read])
        windows_P = windows[pairs["held_document"]]
        shared_P, places_P = shared_windows(pairs)
        share_P = shared_P / np.maximum(windows_P, 1)
        for method, found_P in (
            ("excerpt", find_excerpts(pairs, compared.excerpt_windows)),
            ("near", is_near_copy(shared_P, places_P, windows_P)),
        ):
            _add_pairs(verdicts, method, pairs[found_P], share_P[found_P])


def _add_pairs(
    verdicts: Verdicts, method: str, pairs: Records, share_P: npt.NDArray[np.float64]
) -> None:
    """Remove the sequences that have these windows whole, then one of two for the others."""
    first, last = pairs["first"].astype(np.int64), pairs["last"].astype(np.int64)
    for is_whole in (True, False):
        is_mine = first == last if is_whole else verdicts.kept_N[first] & verdicts.kept_N[last]
        verdicts.add(
            method,
            first[is_mine],
            held_document=pairs["held_document"][is_mine],
            document=pairs["document"][is_mine],
            share=share_P[is_mine],
        )


def _add_titles(compared: Compared, verdicts: Verdicts) -> None:
    reader = compared.reader
    documents, held, shares = same_titles(
        reader, compared.held_out, compared.index, compared.scans, compared.excerpt_windows
    )
    columns = ["start_token", "num_tokens"]
    table = document_rows(reader.directory, reader.split, documents, columns)
    starts, sizes = (table[name].to_numpy() for name in columns)
    first = starts // reader.sequence_length
    last = (starts + np.maximum(sizes, 1) - 1) // reader.sequence_length
    for row, document in enumerate(documents.tolist()):
        verdicts.add(
            "title",
            # All of the document, not only what is shared.
            np.arange(first[row], min(int(last[row]) + 1, len(reader))),
            held_document=int(held[row]),
            document=document,
            share=float(shares[row]),
        )


def _add_sequences(compared: Compared, verdicts: Verdicts) -> None:
    """Remove sequences by the share of their own windows."""
    start, rest = 0, np.zeros((2, 0), np.int64)
    for path in compared.scans:
        with np.load(path / "sequences.npz") as scan:
            counts, first = np.stack([scan["windows"], scan["known"]]), int(scan["start"])
        if not counts.shape[1]:
            continue
        # A sequence may have its last documents in the next part.
        together = np.zeros((2, first + counts.shape[1] - start), np.int64)
        together[:, : rest.shape[1]] = rest
        together[:, first - start :] += counts
        _add_shares(compared, verdicts, start, together[:, :-1])
        start, rest = start + together.shape[1] - 1, together[:, -1:]
    _add_shares(compared, verdicts, start, rest)


def _add_shares(compared: Compared, verdicts: Verdicts, start: int, counts: Integers) -> None:
    windows, known = counts
    share = known / np.maximum(windows, 1)
    rows = np.flatnonzero((windows >= MIN_WINDOWS) & (share > SAFETY * compared.max_share))
    verdicts.add("sequence", start + rows, share=share[rows])
