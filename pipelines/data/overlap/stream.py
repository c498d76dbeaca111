"""Read the documents of a split as pieces of the token stream, wherever sequences begin and end.

Shape legend: T tokens, P pieces, D documents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.shards import (
    DOCUMENT_SCHEMA,
    TOKEN_DTYPE,
    SequenceFiles,
    Tokens,
    shard_paths,
)

Integers = npt.NDArray[np.int64]

DOCUMENTS_PER_PART = 8192
DOCUMENTS_PER_READ = 1024
TOKENS_PER_BATCH = 1 << 18


@dataclass(frozen=True)
class Part:
    """Some documents of a split.

    Args:
        directory: The output of `tokenize`.
        split: Name of the split.
        length: Tokens per sequence.
        groups: Row groups of the table of documents.
        first: Number of the first document.
    """

    directory: Path
    split: str
    length: int
    groups: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class Pieces:
    """Consecutive text of documents; a document with removed sequences is in several pieces.

    Args:
        ids_T: (T,) uint16.
        sequences_T: (T,) int64, the sequence of each token.
        offsets: (P + 1,) int64, where each piece starts.
        documents_P: (P,) int64, the number of each piece's document in the split.
    """

    ids_T: Tokens
    sequences_T: Integers
    offsets: Integers
    documents_P: Integers


def documents_path(directory: Path, split: str) -> Path:
    """The table of a split's documents."""
    return directory / f"{split}.documents.parquet"


def stream_parts(directory: Path, split: str, length: int) -> list[Part]:
    """Divide the documents of a split into parts of about `DOCUMENTS_PER_PART`."""
    metadata = pq.read_metadata(documents_path(directory, split))
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    ends = np.cumsum(sizes, dtype=np.int64)
    parts: dict[int, list[int]] = {}
    for group, end in enumerate(ends.tolist()):
        parts.setdefault((end - 1) // DOCUMENTS_PER_PART, []).append(group)
    return [
        Part(directory, split, length, tuple(groups), int(ends[groups[0]] - sizes[groups[0]]))
        for groups in parts.values()
    ]


def read_pieces(part: Part, removed: Integers) -> Iterator[Pieces]:
    """Read the documents of a part, some at a time.

    Args:
        part: The documents.
        removed: Sequences that are not read, ascending.
    """
    files = SequenceFiles(shard_paths(part.directory, part.split), part.length)
    number = part.first
    path = documents_path(part.directory, part.split)
    with pq.ParquetFile(path, pre_buffer=False) as table:
        for batch in table.iter_batches(
            DOCUMENTS_PER_READ, row_groups=list(part.groups), columns=["start_token", "num_tokens"]
        ):
            starts = batch["start_token"].to_numpy()
            # Tokens that did not fill a sequence are in no shard.
            total = len(files) * part.length
            stops = np.minimum(starts + batch["num_tokens"].to_numpy(), total)
            starts = np.minimum(starts, total)
            chunk = (starts - starts[0]) // TOKENS_PER_BATCH
            for rows in np.split(np.arange(len(starts)), np.flatnonzero(np.diff(chunk)) + 1):
                yield _pieces(files, starts[rows], stops[rows], number + rows, removed)
            number += len(starts)


def document_rows(directory: Path, split: str, rows: Integers, columns: list[str]) -> pa.Table:
    """Read some rows of the table of documents.

    Args:
        directory: The output of `tokenize`.
        split: Name of the split.
        rows: Numbers of documents, ascending.
        columns: Names of columns.
    """
    schema = pa.schema([DOCUMENT_SCHEMA.field(name) for name in columns])
    return pa.Table.from_batches(document_batches(directory, split, rows, columns), schema)


def document_batches(
    directory: Path, split: str, rows: Integers, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of `document_rows` in batches."""
    start = 0
    with pq.ParquetFile(documents_path(directory, split), pre_buffer=False) as table:
        for batch in table.iter_batches(DOCUMENTS_PER_READ, columns=columns):
            first, last = np.searchsorted(rows, [start, start + batch.num_rows])
            yield batch.select(columns).take(pa.array(rows[first:last] - start))
            start += batch.num_rows


def document_starts(directory: Path, split: str) -> Integers:
    """The first token of each document in the split's stream."""
    rows = np.arange(pq.read_metadata(documents_path(directory, split)).num_rows)
    starts: Integers = document_rows(directory, split, rows, ["start_token"])[0].to_numpy()
    return starts


def _pieces(
    files: SequenceFiles, starts: Integers, stops: Integers, documents: Integers, removed: Integers
) -> Pieces:
    start, stop, length = int(starts[0]), int(stops[-1]), files.sequence_length
    ids_T = read_tokens(files, start, stop)
    # The sequences of these tokens, and how many tokens each has.
    numbers = np.arange(start // length, -(-stop // length))
    edges = np.clip(np.append(numbers, numbers[-1:] + 1) * length, start, stop)
    sizes = edges[1:] - edges[:-1]
    sequences_T = np.repeat(numbers, sizes)
    is_kept = np.isin(numbers, removed, invert=True)
    if is_kept.all():
        rows = np.flatnonzero(stops > starts)
        return Pieces(
            ids_T, sequences_T, np.append(starts[rows] - start, len(ids_T)), documents[rows]
        )
    kept_T = np.repeat(is_kept, sizes)
    documents_T = np.repeat(documents, stops - starts)
    ids_T, sequences_T, documents_T = ids_T[kept_T], sequences_T[kept_T], documents_T[kept_T]
    cuts = np.flatnonzero((np.diff(documents_T) != 0) | (np.diff(sequences_T) > 1)) + 1
    first_P = np.append(0, cuts)[: len(ids_T)]
    return Pieces(ids_T, sequences_T, np.append(first_P, len(ids_T)), documents_T[first_P])


def read_tokens(files: SequenceFiles, start: int, stop: int) -> Tokens:
    """Read tokens [start, stop) of the stream: read and not mapped, so that memory stays flat."""
    read = []
    first = 0
    for path, size in zip(files.paths, files.sizes, strict=True):
        low = max(start - first, 0)
        high = min(stop - first, size * files.sequence_length)
        if low < high:
            offset = low * TOKEN_DTYPE.itemsize
            read.append(np.fromfile(path, TOKEN_DTYPE, high - low, offset=offset))
        first += size * files.sequence_length
    return np.concatenate(read) if read else np.empty(0, TOKEN_DTYPE)
