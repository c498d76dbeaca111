"""Windows of texts as numbers: consecutive ideographs of a key, packed without loss.

Shape legend: C ideographs of all keys of a batch, W windows.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.data.audit.keys import fold_pieces
from pipelines.data.text.scripts import IDEOGRAPHS

CHARACTERS_PER_BATCH = 1 << 18
# What stands between ideographs does not hide a copy: notes, readings, symbols.
OTHERS = re.compile("[^" + "".join(f"{chr(a)}-{chr(b - 1)}" for a, b in IDEOGRAPHS) + "]+")
# Shorter ones are in many texts.
MIN_WINDOW_CHARACTERS = 4
# A code point has 21 bits: three of them fit into one column of 64.
POINT_BITS, POINTS_PER_COLUMN = 21, 3
COLUMNS = ("k0", "k1", "k2")
MAX_WINDOW_CHARACTERS = POINTS_PER_COLUMN * len(COLUMNS)
# Of a window that lies in no single sequence.
NO_SEQUENCE = -1
SCHEMA = pa.schema(
    [
        ("sequence", pa.int64()),
        ("document", pa.int64()),
        ("place", pa.int64()),
        *((name, pa.uint64()) for name in COLUMNS),
    ]
)

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Run:
    """Consecutive text of one document.

    Args:
        document: Number of the document.
        sequences: Number of the sequence that holds each piece; equal numbers may repeat.
        pieces: The text, in order.
    """

    document: int
    sequences: tuple[int, ...]
    pieces: tuple[str, ...]


def window_batches(runs: Iterable[Run], window_characters: int) -> Iterator[pa.RecordBatch]:
    """Yield the windows of texts.

    Args:
        runs: The texts.
        window_characters: Characters per window, from `MIN_WINDOW_CHARACTERS` to
            `MAX_WINDOW_CHARACTERS`.

    Yields:
        Batches of `SCHEMA`, one row per window of a run: its sequence (`NO_SEQUENCE` if it crosses
        from one to another), its document, its place (consecutive windows of a run have
        consecutive places, and no two windows have one place), and its characters.
    """
    waiting: list[Run] = []
    characters = place = 0
    for run in runs:
        waiting.append(run)
        characters += sum(map(len, run.pieces))
        if characters >= CHARACTERS_PER_BATCH:
            batch, folded = _windows(waiting, window_characters, place)
            yield batch
            waiting, characters, place = [], 0, place + folded
    yield _windows(waiting, window_characters, place)[0]


def window_text(packed: Iterable[tuple[int, ...]]) -> str:
    """Spell the text of consecutive windows.

    Args:
        packed: The columns of each, in order.

    Returns:
        The characters of the first window, and the last one of each of the others.
    """
    windows = [_unpack(columns) for columns in packed]
    return "".join([*windows[:1], *(window[-1] for window in windows[1:])])


def _unpack(columns: tuple[int, ...]) -> str:
    shifts = range(POINT_BITS * (POINTS_PER_COLUMN - 1), -1, -POINT_BITS)
    mask = (1 << POINT_BITS) - 1
    points = [column >> shift & mask for column in columns for shift in shifts]
    return "".join(map(chr, filter(None, points)))


def _windows(runs: list[Run], width: int, first_place: int) -> tuple[pa.RecordBatch, int]:
    """Pack the windows of some runs; also return the number of folded characters."""
    folded = [[OTHERS.sub("", piece) for piece in fold_pieces(run.pieces)] for run in runs]
    sizes = [len(piece) for pieces in folded for piece in pieces]
    sequence_C = np.repeat(_integers(chain.from_iterable(run.sequences for run in runs)), sizes)
    run_sizes = [sum(map(len, pieces)) for pieces in folded]
    run_C = np.repeat(np.arange(len(runs)), run_sizes)
    document_C = np.repeat(_integers(run.document for run in runs), run_sizes)
    text = "".join(chain.from_iterable(folded))
    points_C = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint64)
    first_W = _starts(run_C, width)
    crosses_W = sequence_C[first_W] != sequence_C[first_W + width - 1]
    columns = [
        np.where(crosses_W, NO_SEQUENCE, sequence_C[first_W]),
        document_C[first_W],
        first_W + first_place,
        *_pack(points_C, first_W, width),
    ]
    return pa.RecordBatch.from_arrays([pa.array(c) for c in columns], schema=SCHEMA), len(text)


def _integers(values: Iterable[int]) -> Integers:
    return np.fromiter(values, np.int64)


def _starts(run_C: Integers, width: int) -> Integers:
    """Find the first characters of windows."""
    count = len(run_C) - width + 1
    if count <= 0:
        return np.empty(0, np.int64)
    return np.flatnonzero(run_C[:count] == run_C[width - 1 :])


def _pack(points_C: Words, first_W: Integers, width: int) -> list[Words]:
    bits = np.uint64(POINT_BITS)
    padded = np.append(points_C, np.zeros(MAX_WINDOW_CHARACTERS, np.uint64))
    # The three characters from each place on: a column of the window that begins there.
    three = (padded[:-2] << bits | padded[1:-1]) << bits | padded[2:]
    columns = []
    for column in range(len(COLUMNS)):
        packed_W = three[first_W + column * POINTS_PER_COLUMN]
        # What the last column holds behind the end of the window.
        behind = min(max((column + 1) * POINTS_PER_COLUMN - width, 0), POINTS_PER_COLUMN)
        packed_W &= ~np.uint64((1 << POINT_BITS * behind) - 1)
        columns.append(packed_W)
    return columns
