"""Pack a stream of tokens into sequences of one length, and write its side tables.

Shape legend: T tokens, D documents, N sequences, L sequence length.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.shards import DOCUMENT_SCHEMA, SEQUENCE_SCHEMA, ShardWriter
from pipelines.data.text.vocabulary import UNK_TOKEN_ID
from pipelines.params import TokenizeParams


class Packer:
    """Write one split in the layout of `pipelines/data/shards.py`, batch by batch.

    Args:
        directory: Where the files go.
        split: Name of the split.
        params: The section `tokenize`.
    """

    def __init__(self, directory: Path, split: str, params: TokenizeParams) -> None:
        self._writer = ShardWriter(
            directory,
            split,
            sequence_length=params.sequence_length,
            sequences_per_shard=params.sequences_per_shard,
        )
        self._length = params.sequence_length
        self._sequences, self._documents = (
            pq.ParquetWriter(directory / f"{split}.{kind}.parquet", schema, compression="zstd")
            for kind, schema in (("sequences", SEQUENCE_SCHEMA), ("documents", DOCUMENT_SCHEMA))
        )
        self._ids = np.empty(0, np.uint16)
        self._characters = np.empty(0, np.int32)
        self._next_token = 0

    @property
    def num_sequences(self) -> int:
        """Sequences written so far."""
        return self._writer.num_sequences

    def append(
        self,
        documents: pa.Table,
        ids: npt.NDArray[np.uint16],
        characters: npt.NDArray[np.int32],
        lengths: npt.NDArray[np.int64],
    ) -> None:
        """Write the complete sequences of the stream so far; keep the rest for the next call.

        Args:
            documents: D rows with `id` and `title`.
            ids: (T,) uint16, the documents one after another.
            characters: (T,) int32, source characters of each token.
            lengths: (D,) int64, tokens of each document.
        """
        ends = self._next_token + np.cumsum(lengths)
        names = documents.select(["id", "title"]).to_batches()
        columns: dict[str, Any] = {
            **{name: pa.chunked_array([b.column(name) for b in names]) for name in ("id", "title")},
            "start_token": ends - lengths,
            "num_tokens": lengths,
        }
        self._documents.write_table(pa.table(columns, schema=DOCUMENT_SCHEMA))
        self._next_token += len(ids)
        ids_NL, self._ids = pack(np.concatenate([self._ids, ids]), self._length)
        characters_NL, self._characters = pack(
            np.concatenate([self._characters, characters]), self._length
        )
        first = self.num_sequences
        self._writer.append(ids_NL)
        # Token 0 is never predicted, so its characters do not count.
        unknown_NL = characters_NL * (ids_NL == UNK_TOKEN_ID)
        counts = {
            "source_sequence": np.arange(first, first + len(ids_NL)),
            "characters": characters_NL[:, 1:].sum(axis=1, dtype=np.int32),
            "unk_characters": unknown_NL[:, 1:].sum(axis=1, dtype=np.int32),
        }
        self._sequences.write_table(pa.table(counts, schema=SEQUENCE_SCHEMA))

    def close(self) -> int:
        """Finish the side tables.

        Returns:
            The number of tokens that are dropped, as they do not fill a sequence.
        """
        self._sequences.close()
        self._documents.close()
        return len(self._ids)


def pack(stream_T: npt.NDArray[Any], length: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Divide a stream into sequences without a copy.

    Args:
        stream_T: (T,) any dtype.
        length: Tokens per sequence, L.

    Returns:
        (N, L) with N = T // L, and the T % L values that are left over.
    """
    used = len(stream_T) - len(stream_T) % length
    return stream_T[:used].reshape(-1, length), stream_T[used:]
