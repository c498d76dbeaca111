"""Give entries that no text uses to characters that the vocabulary lacks.

A character that stands alone (`code_points.py`) has the id of its own entry, or [UNK]. An entry
that the tokenizer can never produce (`possible.py`) may become such a character without a change
to any other id: it is never the beginning of a word or of the rest of one. The characters that
train has most often come first; validation and test are not looked at.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.data.text.arrays import text_array, utf8_views
from pipelines.data.text.compiled import have_numba
from pipelines.data.text.vocabulary import SPECIAL_TOKENS
from pipelines.data.tokenizer.code_points import CODE_POINTS, is_provable, standing_forms
from pipelines.data.tokenizer.part import Part, read_batches

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Counts = npt.NDArray[np.int64]

COUNTS_NAME = "counts.npz"
BATCH_BYTES = 1 << 22


def count_part(part: Part, directory: Path) -> None:
    """Count the code points of the texts of one part; a worker of `tokenize` does this."""
    counts = np.zeros(CODE_POINTS, np.int64)
    for batch in read_batches(part, ["text"]):
        count_code_points(batch["text"], counts)
    points = np.flatnonzero(counts)
    np.savez(directory / COUNTS_NAME, points=points, counts=counts[points])


def read_counts(parts: list[Path]) -> Counts:
    """Add up what `count_part` wrote; (0x110000,) int64."""
    total = np.zeros(CODE_POINTS, np.int64)
    for part in parts:
        with np.load(part / COUNTS_NAME) as found:
            total[found["points"]] += found["counts"]
    return total


def count_code_points(texts: pa.Array, counts: Counts, *, use_numba: bool | None = None) -> None:
    """Count the code points of D texts.

    Args:
        texts: D strings.
        counts: (0x110000,) int64; the counts are added to it.
        use_numba: Whether to compile the loop; by default if numba is installed.
    """
    data, offsets = utf8_views(text_array(texts))
    if have_numba(use_numba):
        from pipelines.data.tokenizer import kernels

        kernels.count_code_points(data, offsets[0], offsets[-1], counts)
        return
    for text in _pieces(data, offsets):
        points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        counts += np.bincount(points, minlength=CODE_POINTS)


def _pieces(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> Iterator[str]:
    """The texts, as many at a time as keep memory flat."""
    marks = np.arange(offsets[0] + BATCH_BYTES, offsets[-1], BATCH_BYTES)
    edges = offsets[np.unique([0, *np.searchsorted(offsets, marks), len(offsets) - 1])].tolist()
    for start, stop in pairwise(edges):
        yield data[start:stop].tobytes().decode()


def lacking_characters(tokenizer: "Tokenizer", counts: Counts) -> list[str]:
    """Find the characters that stand alone and that the vocabulary lacks.

    Args:
        tokenizer: As `tokenize` uses it.
        counts: (0x110000,) int64, how often a text has each code point.

    Returns:
        The characters as the tokenizer normalises them, the most frequent first; equally frequent
        ones by code point. None of them if the tokenizer is of a kind for which it cannot be
        proved that they stand alone.
    """
    if not is_provable(tokenizer):
        return []
    forms = standing_forms(tokenizer)
    seen = np.flatnonzero((counts > 0) & (forms < CODE_POINTS))
    points, which = np.unique(forms[seen], return_inverse=True)
    totals = np.bincount(which, counts[seen], len(points)).astype(np.int64)
    order = np.lexsort((points, -totals))
    known = tokenizer.get_vocab()
    return [character for character in map(chr, points[order]) if character not in known]


def give_entries(
    tokens: Sequence[str], possible_V: npt.NDArray[np.bool_], characters: list[str]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Replace entries that the tokenizer can never produce by characters.

    Args:
        tokens: The entries of the tokenizer.
        possible_V: (V,) bool, which of them it can produce.
        characters: Not among the entries; those for which no entry is left are passed over.

    Returns:
        The entries, and the id of each character that has one. With these, the tokenizer can
        produce them, and all others as before.
    """
    # [PAD], [CLS] and [MASK] stay, although no text makes them.
    free = [
        index
        for index in np.flatnonzero(~possible_V).tolist()
        if tokens[index] not in SPECIAL_TOKENS
    ]
    given = dict(zip(characters, free, strict=False))
    changed = list(tokens)
    for character, index in given.items():
        changed[index] = character
    return tuple(changed), given
