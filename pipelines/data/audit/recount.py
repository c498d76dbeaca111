"""Count what two splits share in the final shards, by other means than the filter.

The filter (`pipelines/data/overlap/reference.py`) uses hashes and Arrow. Here whole sequences
are compared as bytes in a dictionary, and windows as the tokens themselves, so a fault of the
filter is not repeated. The data stay in files.

Shape legend: N sequences, L length, K references.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from enigma.language_model.word_pieces import join_word_pieces
from pipelines.base.artifacts import read_manifest
from pipelines.base.run_stage import progress
from pipelines.base.workspace import SPLITS
from pipelines.data.shards import SequenceFiles, Tokens, fixed_binary, shard_paths
from pipelines.data.text.arrays import hash_keys
from pipelines.data.text.compiled import have_numba
from pipelines.data.text.folding import title_key
from pipelines.data.text.vocabulary import load_tokenizer

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

NAMES_PER_BATCH = 8192
# 34 bytes each while they are compared, behind a filter of 4 MB that fits into a cache.
WINDOWS_PER_TABLE, TABLE_FILTER_BITS = 1 << 21, 25
# 64 MB: with 33 million windows of references, 1.5 % of the others pass.
FILTER_BITS = 29
# 24 bytes each.
WINDOWS_PER_READ = 1 << 19
# Tokens of 16 bits in two words of 64.
WORD_TOKENS = 8


def overlap_table(directory: Path, *, window_tokens: int, max_containment: float) -> "pd.DataFrame":
    """Count what every pair of splits shares.

    Args:
        directory: The final shards.
        window_tokens: Tokens per window; at most the sequence length.
        max_containment: A sequence with a larger share of known windows counts as shared.

    Returns:
        One row per pair and method, columns `expectations.overlap.COLUMNS`; `example`
        names the first or worst match, or is empty.
    """
    import pandas as pd

    from expectations import overlap

    manifest = read_manifest(directory)
    length = int(manifest["sequence_length"])
    files = {split: SequenceFiles(shard_paths(directory, split), length) for split in SPLITS}
    names = {
        (split, column): _Names(directory / f"{split}.documents.parquet", column)
        for split in SPLITS
        for column in ("id", "title")
    }
    found: dict[tuple[str, str], Row] = {}
    pairs = [(split, other) for split, _, other in (p.partition("/") for p in overlap.PAIRS)]
    compared = dict.fromkeys(split for split, _ in pairs)
    for split in progress(compared, total=len(compared), unit="split", label="recount"):
        others = [other for first, other in pairs if first == split]
        comparison = _Comparison(split, others, files, str(manifest["vocabulary"]))
        exact = comparison.exact()
        near = comparison.near(window_tokens, max_containment)
        for other, exact_row, near_row in zip(others, exact, near, strict=True):
            found[f"{split}/{other}", "exact_sequence"] = exact_row
            found[f"{split}/{other}", "near_containment"] = near_row
            for method, column in (("document_id", "id"), ("title", "title")):
                found[f"{split}/{other}", method] = _shared_names(
                    split, other, names[split, column], names[other, column]
                )
    rows = [
        {"pair": pair, "method": method, **found[pair, method]}
        for pair in overlap.PAIRS
        for method in overlap.METHODS
    ]
    return pd.DataFrame(rows, columns=list(overlap.COLUMNS))


class _Comparison:
    """Compare the sequences of one split with those of others, all of them in files."""

    def __init__(
        self, split: str, others: list[str], files: dict[str, SequenceFiles], vocabulary: str
    ) -> None:
        self._split = split
        self._others = others
        self._files = files
        self._vocabulary = vocabulary

    def exact(self) -> list[Row]:
        """Count the sequences that each of the others has, byte for byte."""
        rows: list[dict[bytes, int]] = [{} for _ in self._others]
        for known, other in zip(rows, self._others, strict=True):
            for row, (digest, _) in enumerate(_digests(self._files[other])):
                known.setdefault(digest, row)
        pairs: list[list[tuple[int, int]]] = [[] for _ in self._others]
        for index, (digest, content) in enumerate(_digests(self._files[self._split])):
            for known, found, other in zip(rows, pairs, self._others, strict=True):
                if digest in known:
                    same = known[digest]
                    if self._sequence(other, same).tobytes() == content:
                        found.append((index, same))
        return [
            self._row(
                other,
                len(found),
                1.0 if found else 0.0,
                self._name(other, *found[0]) if found else "",
            )
            for other, found in zip(self._others, pairs, strict=True)
        ]

    def near(self, window_tokens: int, max_containment: float) -> list[Row]:
        """Count the sequences that have too many of their windows in each of the others."""
        files = self._files[self._split]
        references = [self._files[other] for other in self._others]
        num_windows = files.sequence_length - window_tokens + 1
        counts_KN = known_windows(files, references, window_tokens)
        rows = []
        for other, counts_N in zip(self._others, counts_KN, strict=True):
            containment_N = counts_N / num_windows
            shared = int(np.count_nonzero(containment_N > max_containment))
            worst = int(containment_N.argmax()) if len(containment_N) else -1
            example = ""
            if shared:
                like_N = known_windows(
                    self._files[other], [[self._sequence(self._split, worst)]], window_tokens
                )
                example = self._name(other, worst, int(like_N[0].argmax()))
            rows.append(self._row(other, shared, float(containment_N.max(initial=0.0)), example))
        return rows

    def _row(self, other: str, shared: int, max_containment: float, example: str) -> Row:
        # With an empty side nothing was compared, and the gate must report that.
        compared = len(self._files[self._split]) if len(self._files[other]) else 0
        return {
            "compared": compared,
            "shared": shared,
            "max_containment": max_containment,
            "example": example,
        }

    def _name(self, other: str, index: int, other_index: int) -> str:
        sequence_1L = self._sequence(self._split, index)
        text = join_word_pieces(load_tokenizer(self._vocabulary), sequence_1L[0])
        return f"{self._split} sequence {index} is in {other} sequence {other_index}: {text}"

    def _sequence(self, split: str, index: int) -> Tokens:
        return self._files[split].gather(np.array([index]))


def _digests(blocks: Iterable[Tokens]) -> Iterator[tuple[bytes, bytes]]:
    """Yield a hash of every sequence, and its bytes."""
    for block_NL in blocks:
        for sequence in block_NL:
            content = sequence.tobytes()
            yield hashlib.blake2b(content, digest_size=16).digest(), content


def known_windows(
    blocks: Iterable[Tokens],
    references: Sequence[Iterable[Tokens]],
    window_tokens: int,
    *,
    use_numba: bool | None = None,
    windows_per_table: int = WINDOWS_PER_TABLE,
) -> npt.NDArray[np.int64]:
    """Count the windows that occur in references, by the tokens themselves and not by a hash.

    A filter rules out nearly all windows that no reference has. The others are written to a
    file and compared with the references in several passes: memory does not grow with either.

    Args:
        blocks: (N', L) uint16 each, N sequences in all; read once.
        references: K of the same kind, read several times; K at most 7.
        window_tokens: Tokens per window; at most L.
        use_numba: Whether to compile the loops (for windows of up to 8 tokens); by default
            if numba is installed.
        windows_per_table: Approximate number of windows per pass.

    Returns:
        (K, N) int64, how many windows of each sequence each reference has.
    """
    if not (have_numba(use_numba) and window_tokens <= WORD_TOKENS):
        return np.stack([_by_arrow(blocks, known, window_tokens) for known in references])
    with TemporaryFile() as spill:
        sequences, collected = _collect(blocks, references, window_tokens, spill)
        passes = max(1, -(-collected // windows_per_table))
        # A pass may get more than its share, and a search in a full table never ends.
        slots = 1 << (int(1.3 * min(collected, windows_per_table)) + 64).bit_length()
        counts_KN = np.zeros((len(references), sequences), np.int64)
        for number in range(passes):
            _count(spill, references, window_tokens, counts_KN, which=(number, passes), slots=slots)
    return counts_KN


def _collect(
    blocks: Iterable[Tokens],
    references: Sequence[Iterable[Tokens]],
    window_tokens: int,
    spill: IO[bytes],
) -> tuple[int, int]:
    """Write the windows that pass the filter to a file.

    Returns:
        The number of sequences, and of windows that were written.
    """
    from pipelines.data.audit import kernels

    bits, shift = _filter(FILTER_BITS)
    for known in references:
        for block_NL in known:
            kernels.mark_windows(block_NL, window_tokens, bits, shift)
    found_C3 = np.empty((WINDOWS_PER_READ, 3), np.uint64)
    sequences = collected = 0
    for block_NL in blocks:
        row = 0
        while row < len(block_NL):
            row, found = kernels.collect_windows(
                block_NL, row, window_tokens, bits, shift, found_C3
            )
            found_C3[:found, 2] += np.uint64(sequences)
            found_C3[:found].tofile(spill)
            collected += found
        sequences += len(block_NL)
    return sequences, collected


def _count(
    spill: IO[bytes],
    references: Sequence[Iterable[Tokens]],
    window_tokens: int,
    counts_KN: npt.NDArray[np.int64],
    *,
    which: tuple[int, int],
    slots: int,
) -> None:
    """Compare the collected windows of one pass (which, of how many) with the references."""
    from pipelines.data.audit import kernels

    words, owners = np.empty((slots, 2), np.uint64), np.zeros(slots, np.uint8)
    bits, shift = _filter(TABLE_FILTER_BITS)
    for found_C3 in _read(spill):
        kernels.add_windows(found_C3, *which, words, owners, bits, shift)
    for number, known in enumerate(references):
        for block_NL in known:
            kernels.own_windows(
                block_NL, window_tokens, 1 << number, *which, words, owners, bits, shift
            )
    for found_C3 in _read(spill):
        kernels.count_windows(found_C3, *which, words, owners, counts_KN)


def _filter(bits: int) -> tuple[npt.NDArray[np.uint64], np.uint64]:
    """An empty filter, and the shift that turns a key into the index of its word."""
    return np.zeros(1 << (bits - 6), np.uint64), np.uint64(64 - (bits - 6))


def _read(spill: IO[bytes]) -> Iterator[npt.NDArray[np.uint64]]:
    spill.seek(0)
    while (found := np.fromfile(spill, np.uint64, 3 * WINDOWS_PER_READ)).size:
        yield found.reshape(-1, 3)


def _by_arrow(
    blocks: Iterable[Tokens], reference: Iterable[Tokens], window_tokens: int
) -> npt.NDArray[np.int64]:
    known = pa.chunked_array([_windows(block, window_tokens) for block in reference])
    counts = [np.empty(0, np.int64)]
    for block_NL in blocks:
        hits = pc.is_in(_windows(block_NL, window_tokens), value_set=known)
        hits_NW = hits.to_numpy(zero_copy_only=False).reshape(len(block_NL), -1)
        counts.append(hits_NW.sum(axis=1, dtype=np.int64))
    return np.concatenate(counts)


def _windows(tokens_NL: Tokens, window_tokens: int) -> pa.Array:
    """All windows of all sequences, the tokens themselves as fixed-size binary."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens_NL, window_tokens, axis=1)
    return fixed_binary(windows.reshape(-1, window_tokens))


class _Names:
    """Ids or titles of a split's documents, as hashes of 64 bits; empty ones do not count."""

    def __init__(self, path: Path, column: str) -> None:
        self._path = path
        self._column = column
        keys = [hash_keys(pa.array(names)) for names in self._batches()]
        self.keys = np.concatenate([np.empty(0, np.uint64), *keys])

    def _batches(self) -> Iterator[list[str]]:
        with pq.ParquetFile(self._path, pre_buffer=False) as file:
            for batch in file.iter_batches(NAMES_PER_BATCH, columns=[self._column]):
                names = batch.column(0).to_pylist()
                yield [title_key(name) for name in names] if self._column == "title" else names

    def of(self, keys: npt.NDArray[np.uint64]) -> set[str]:
        """The names that have these hashes."""
        names = (name for batch in self._batches() for name in batch)
        return {name for name, mine in zip(names, np.isin(self.keys, keys), strict=True) if mine}


def _shared_names(split: str, other: str, names: _Names, other_names: _Names) -> Row:
    keys = np.intersect1d(names.keys, other_names.keys)
    shared = sorted((names.of(keys) & other_names.of(keys)) - {""}) if len(keys) else []
    example = f"{shared[0]!r} is in {split} and in {other}" if shared else ""
    return {
        "compared": len(names.keys) if len(other_names.keys) else 0,
        "shared": len(shared),
        "max_containment": 1.0 if shared else 0.0,
        "example": example,
    }
