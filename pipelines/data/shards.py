"""Token shards: raw little-endian uint16, memory-mapped, gathered by whole batch.

A directory of shards holds, for each split `S`:

* `S-00000.bin`, `S-00001.bin`, ...: (sequences, length) uint16, C order;
* `S.sequences.parquet`, one row per sequence: `source_sequence` (its index before
  anything was removed), `characters` and `unk_characters` (of the source text
  behind tokens 1..length-1, the ones that are predicted);
* `S.documents.parquet`, one row per document in packing order: `id`, `title`,
  `start_token`, `num_tokens` in the split's stream before anything was removed;
* `vocabulary.parquet`, see `pipelines/data/text/shard_vocabulary.py`;
* `manifest.json` with `sequence_length`, `vocabulary_size`, `eos_token_id` and
  `sequences` (one count per split).

Shape legend: N sequences, L length, B batch.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.base.artifacts import read_manifest
from pipelines.base.errors import UserError

SEQUENCES_PER_BLOCK = 8192
TOKEN_DTYPE = np.dtype("<u2")

SEQUENCE_SCHEMA = pa.schema(
    [
        ("source_sequence", pa.int64()),
        ("characters", pa.int32()),
        ("unk_characters", pa.int32()),
    ]
)
DOCUMENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("title", pa.string()),
        ("start_token", pa.int64()),
        ("num_tokens", pa.int64()),
    ]
)

Tokens = npt.NDArray[np.uint16]


class ShardWriter:
    """Appends sequences to the shards of one split.

    Args:
        directory: Where the shards go.
        split: Name of the split.
        sequence_length: Tokens per sequence.
        sequences_per_shard: Sequences per file.
    """

    def __init__(
        self, directory: Path, split: str, *, sequence_length: int, sequences_per_shard: int
    ) -> None:
        self._directory = directory
        self._split = split
        self._length = sequence_length
        self._capacity = sequences_per_shard
        self.num_sequences = 0

    def append(self, tokens_NL: Tokens) -> None:
        """Write sequences.

        Args:
            tokens_NL: (N, L) uint16.

        Raises:
            ValueError: If the shape or dtype differs from the shard's.
        """
        if tokens_NL.ndim != 2 or tokens_NL.shape[1] != self._length:
            msg = f"expected shape (N, {self._length}), got {tokens_NL.shape}"
            raise ValueError(msg)
        if tokens_NL.dtype != np.uint16:
            msg = f"expected uint16, got {tokens_NL.dtype}"
            raise ValueError(msg)
        start = 0
        while start < len(tokens_NL):
            shard, filled = divmod(self.num_sequences, self._capacity)
            stop = min(len(tokens_NL), start + self._capacity - filled)
            with shard_path(self._directory, self._split, shard).open("ab") as stream:
                stream.write(tokens_NL[start:stop].astype(TOKEN_DTYPE, copy=False).tobytes())
            self.num_sequences += stop - start
            start = stop


class SequenceFiles:
    """Sequences in files of raw tokens; iterate over them in blocks, or gather some by index.

    Args:
        paths: The files, in order.
        sequence_length: Tokens per sequence.

    Raises:
        UserError: If a file does not hold whole sequences.
    """

    def __init__(self, paths: Sequence[Path], sequence_length: int) -> None:
        self.paths = paths
        self.sequence_length = sequence_length
        self._shards = [_map_shard(path, sequence_length) for path in paths]
        self._row = TOKEN_DTYPE.itemsize * sequence_length
        self.sizes = [len(shard) // self._row for shard in self._shards]
        self._starts = list(accumulate(self.sizes, initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def gather(self, indices_B: npt.NDArray[np.int64]) -> Tokens:
        """Copy sequences by index, in the order asked for.

        Args:
            indices_B: (B,) int64, each in [0, N).

        Returns:
            (B, L) uint16.
        """
        # For a batch of training, slices of bytes are faster than NumPy's indexing, which has to
        # be called for every shard; so are local names.
        shards, starts, row = self._shards, self._starts, self._row
        rows = []
        for index in indices_B.tolist():
            shard = bisect_right(starts, index) - 1
            start = (index - starts[shard]) * row
            rows.append(shards[shard][start : start + row])
        ids = np.frombuffer(bytearray().join(rows), TOKEN_DTYPE)
        return ids.reshape(len(rows), self.sequence_length)

    def __iter__(self) -> Iterator[Tokens]:
        """Yield all sequences in blocks, read and not mapped, so that memory stays flat."""
        for path in self.paths:
            yield from read_blocks(path, self.sequence_length)


class ShardReader(SequenceFiles):
    """All sequences of one split.

    Args:
        directory: A directory of shards with its manifest.
        split: Name of the split.

    Raises:
        UserError: If files are missing or their sizes contradict the manifest.
    """

    def __init__(self, directory: Path, split: str) -> None:
        manifest = read_manifest(directory)
        super().__init__(shard_paths(directory, split), int(manifest["sequence_length"]))
        self.directory = directory
        self.split = split
        expected = int(manifest["sequences"][split])
        if len(self) != expected:
            raise UserError(
                f"{directory}: expected {expected} sequences of split {split}, got {len(self)}",
                f"restore the files with `dvc checkout --force {directory}`, or run `dvc repro`",
            )

    def sequences(self) -> pa.Table:
        """The table with one row per sequence."""
        return pq.read_table(self.directory / f"{self.split}.sequences.parquet")

    def documents(self) -> pa.Table:
        """The table with one row per document."""
        return pq.read_table(self.directory / f"{self.split}.documents.parquet")

    def document_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, without the [SEP] that ends it."""
        tokens: npt.NDArray[np.int64] = self.documents()["num_tokens"].to_numpy() - 1
        return tokens


def shard_path(directory: Path, split: str, shard: int) -> Path:
    """The file of a shard."""
    return directory / f"{split}-{shard:05d}.bin"


def shard_paths(directory: Path, split: str) -> list[Path]:
    """The files of a split's shards, in order."""
    return sorted(directory.glob(f"{split}-[0-9]*.bin"))


def read_blocks(path: Path, length: int) -> Iterator[Tokens]:
    """Read a file of sequences block by block.

    Yields:
        (N, L) uint16, N at most `SEQUENCES_PER_BLOCK`.
    """
    with path.open("rb") as stream:
        while (block := np.fromfile(stream, TOKEN_DTYPE, SEQUENCES_PER_BLOCK * length)).size:
            yield block.reshape(-1, length)


def count_train_ids(directory: Path, length: int, vocabulary_size: int) -> npt.NDArray[np.int64]:
    """Count how often the train sequences of a directory have each id.

    Args:
        directory: The shards; they need no manifest.
        length: Tokens per sequence.
        vocabulary_size: V; every id is below it.

    Returns:
        (V,) int64.
    """
    counts_V = np.zeros(vocabulary_size, np.int64)
    for block_NL in SequenceFiles(shard_paths(directory, "train"), length):
        counts_V += np.bincount(block_NL.reshape(-1), minlength=vocabulary_size)
    return counts_V


def fixed_binary(tokens_NL: Tokens) -> pa.Array:
    """View sequences as Arrow fixed-size binary, for `is_in` and for equality.

    Args:
        tokens_NL: (N, L) uint16, C-contiguous.

    Returns:
        N values of 2 L bytes, without a copy.
    """
    width = 2 * tokens_NL.shape[1]
    buffer = pa.py_buffer(np.ascontiguousarray(tokens_NL, dtype=TOKEN_DTYPE))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(tokens_NL), [None, buffer])


def _map_shard(path: Path, length: int) -> memoryview:
    size = path.stat().st_size
    row = TOKEN_DTYPE.itemsize * length
    if size == 0 or size % row:
        raise UserError(
            f"{path}: expected whole sequences of {row} bytes, got {size} bytes",
            f"restore the file with `dvc checkout --force {path.parent}`, or make it again with "
            "`dvc repro`",
        )
    with path.open("rb") as stream:
        return memoryview(mmap(stream.fileno(), 0, access=ACCESS_READ))
