"""What two splits share, counted from the final shards by other means than the filter's.

`pipelines/overlap.py` removed with hashes and Arrow; here whole sequences are
compared as bytes in a dictionary, and windows as the tokens themselves: if the
filter has a fault, it is not repeated.

Shape legend: N sequences, L length, W windows of a sequence.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.artifacts import read_manifest
from pipelines.compilation import have_numba
from pipelines.evidence import read_shards
from pipelines.normalisation import title_key
from pipelines.shards import Tokens, fixed_binary
from pipelines.stage import progress
from pipelines.vocabulary import decode_text, load_tokenizer
from pipelines.workspace import SPLITS

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
Containment = Callable[[Tokens], npt.NDArray[np.float64]]

SEQUENCES_A_BLOCK = 32_768
# Tokens of 16 bits in two words of 64.
WORD_TOKENS = 8


def overlap_table(directory: Path, *, window_tokens: int, max_containment: float) -> "pd.DataFrame":
    """Count what every pair of splits shares.

    Args:
        directory: The final shards.
        window_tokens: Tokens a window; at most the sequence length.
        max_containment: A sequence with a larger share of known windows is shared.

    Returns:
        A row a pair and method, columns `expectations.overlap.COLUMNS`; `example`
        names the first or worst thing shared, or is empty.
    """
    import pandas as pd

    from expectations import overlap

    manifest = read_manifest(directory)
    length = int(manifest["sequence_length"])
    pieces = {split: read_shards(directory, split, length) for split in SPLITS}
    documents = {split: _read_documents(directory, split) for split in SPLITS}
    rows = []
    pairs = progress(overlap.PAIRS, total=len(overlap.PAIRS), unit="pair", label="recount")
    for split, other in (pair.split("/") for pair in pairs):
        comparison = _Comparison(split, other, pieces[split], pieces[other], manifest)
        shared = {
            "exact_sequence": comparison.exact(),
            "near_containment": comparison.near(window_tokens, max_containment),
            "document_id": _shared_names(
                split, other, *(documents[s]["id"] for s in (split, other))
            ),
            "title": _shared_names(split, other, *(documents[s]["title"] for s in (split, other))),
        }
        rows += [{"pair": f"{split}/{other}", "method": m, **shared[m]} for m in overlap.METHODS]
    return pd.DataFrame(rows, columns=list(overlap.COLUMNS))


class _Comparison:
    """The sequences of one split beside those of another."""

    def __init__(
        self,
        split: str,
        other: str,
        pieces: list[Tokens],
        other_pieces: list[Tokens],
        manifest: dict[str, Any],
    ) -> None:
        self._names = (split, other)
        self._pieces = pieces
        self._size = sum(len(piece) for piece in pieces)
        self._length = int(manifest["sequence_length"])
        self._vocabulary = str(manifest["vocabulary"])
        empty = np.empty((0, self._length), dtype=np.uint16)
        self._other_NL = np.concatenate([empty, *other_pieces])

    def exact(self) -> Row:
        """Sequences that are equal, byte for byte."""
        rows: dict[bytes, int] = {}
        for row, sequence in enumerate(self._other_NL):
            rows.setdefault(sequence.tobytes(), row)
        pairs = [
            (index, rows[content])
            for index, content in enumerate(
                sequence.tobytes() for piece in self._pieces for sequence in piece
            )
            if content in rows
        ]
        example = self._name(*pairs[0]) if pairs else ""
        return self._row(len(pairs), 1.0 if pairs else 0.0, example)

    def near(self, window_tokens: int, max_containment: float) -> Row:
        """Sequences of whose windows too many occur in the other split."""
        containment = windows_of(self._other_NL, window_tokens)
        shared, worst, worst_index, start = 0, 0.0, -1, 0
        for block_NL in self._blocks():
            containment_N = containment(block_NL)
            shared += int(np.count_nonzero(containment_N > max_containment))
            if containment_N.max() > worst:
                worst, worst_index = float(containment_N.max()), start + int(containment_N.argmax())
            start += len(block_NL)
        example = ""
        if shared:
            like_worst = windows_of(self._sequence(worst_index)[None], window_tokens)
            example = self._name(worst_index, int(like_worst(self._other_NL).argmax()))
        return self._row(shared, worst, example)

    def _row(self, shared: int, max_containment: float, example: str) -> Row:
        # With an empty side nothing was compared, and the gate shall say so.
        compared = self._size if len(self._other_NL) else 0
        return {
            "compared": compared,
            "shared": shared,
            "max_containment": max_containment,
            "example": example,
        }

    def _blocks(self) -> Iterator[Tokens]:
        for piece in self._pieces:
            for start in range(0, len(piece), SEQUENCES_A_BLOCK):
                yield piece[start : start + SEQUENCES_A_BLOCK]

    def _sequence(self, index: int) -> Tokens:
        for piece in self._pieces:
            if index < len(piece):
                sequence: Tokens = piece[index]
                return sequence
            index -= len(piece)
        msg = f"no sequence {index}"
        raise IndexError(msg)

    def _name(self, index: int, other_index: int) -> str:
        text = decode_text(load_tokenizer(self._vocabulary), self._sequence(index))
        split, other = self._names
        return f"{split} sequence {index} is in {other} sequence {other_index}: {text}"


def windows_of(
    tokens_ML: Tokens, window_tokens: int, *, use_numba: bool | None = None
) -> Containment:
    """Gather the windows of reference sequences, the tokens themselves and no hash of them.

    Args:
        tokens_ML: (M, L) uint16.
        window_tokens: Tokens a window; at most L.
        use_numba: Whether to compile the loops (for windows of up to 8 tokens); by default
            if numba is installed.

    Returns:
        A function: (N, L) uint16 -> (N,) float64, the share of each sequence's windows that
        are among them.
    """
    if have_numba(use_numba) and window_tokens <= WORD_TOKENS:
        return _by_table(tokens_ML, window_tokens)
    known = _windows(tokens_ML, window_tokens)

    def containment(tokens_NL: Tokens) -> npt.NDArray[np.float64]:
        hits = pc.is_in(_windows(tokens_NL, window_tokens), value_set=known)
        hits_NW = hits.to_numpy(zero_copy_only=False).reshape(len(tokens_NL), -1)
        return np.asarray(hits_NW.mean(axis=1), dtype=np.float64)

    return containment


def _by_table(tokens_ML: Tokens, window_tokens: int) -> Containment:
    from pipelines import window_kernels

    num_windows = tokens_ML.shape[1] - window_tokens + 1
    # Half of the slots stay free, so that a search is short.
    slots = 1 << max(2 * len(tokens_ML) * num_windows, 2).bit_length()
    words = np.empty((slots, 2), np.uint64)
    is_used = np.zeros(slots, dtype=bool)
    bits = np.zeros(1 << 21, np.uint64)
    window_kernels.add_windows(tokens_ML, window_tokens, words, is_used, bits)

    def containment(tokens_NL: Tokens) -> npt.NDArray[np.float64]:
        counts_N = np.empty(len(tokens_NL), np.int64)
        window_kernels.count_windows(tokens_NL, window_tokens, words, is_used, bits, counts_N)
        shares_N: npt.NDArray[np.float64] = counts_N / num_windows
        return shares_N

    return containment


def _windows(tokens_NL: Tokens, window_tokens: int) -> pa.Array:
    """All windows of all sequences, the tokens themselves as fixed-size binary."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens_NL, window_tokens, axis=1)
    return fixed_binary(windows.reshape(-1, window_tokens))


def _read_documents(directory: Path, split: str) -> dict[str, list[str]]:
    """Ids and titles of a split's documents; an empty title names nothing."""
    table = pq.read_table(directory / f"{split}.documents.parquet", columns=["id", "title"])
    return {
        "id": table["id"].to_pylist(),
        "title": [title_key(title) for title in table["title"].to_pylist()],
    }


def _shared_names(split: str, other: str, names: list[str], other_names: list[str]) -> Row:
    shared = sorted((set(names) & set(other_names)) - {""})
    example = f"{shared[0]!r} is in {split} and in {other}" if shared else ""
    return {
        "compared": len(names) if other_names else 0,
        "shared": len(shared),
        "max_containment": 1.0 if shared else 0.0,
        "example": example,
    }
