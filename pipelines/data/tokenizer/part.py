"""Tokenize some documents, before packing; a worker of `tokenize` does this.

ids.bin            uint16, the documents one after another, each followed by [SEP]
characters.bin     int32, source characters of each token
documents.parquet  `id`, `title`, `num_tokens`
facts.json         counts
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.base.artifacts import write_array, write_json
from pipelines.data.shards import TOKEN_DTYPE
from pipelines.data.text.shard_vocabulary import ShardVocabulary
from pipelines.data.text.vocabulary import EOS_TOKEN_ID, UNK_TOKEN_ID, make_tokenizer
from pipelines.data.tokenizer.fast import FastTokenizer, TokenStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DOCUMENTS_PER_PART = 16_384
DOCUMENTS_PER_BATCH = 1024
CHARACTERS_DTYPE = np.dtype("<i4")
PART_SCHEMA = pa.schema([("id", pa.string()), ("title", pa.string()), ("num_tokens", pa.int64())])


@dataclass(frozen=True)
class Part:
    """Some documents of a split.

    Args:
        path: A parquet file of clean documents.
        groups: Its row groups to read.
    """

    path: Path
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Encoding:
    """How to tokenize a part.

    Args:
        part: The documents.
        vocabulary: The directory of `vocabulary.parquet`.
        lower_case: Whether the tokenizer lower-cases.
    """

    part: Part
    vocabulary: Path
    lower_case: bool


def document_parts(path: Path) -> list[Part]:
    """Divide the documents of a split into parts of about `DOCUMENTS_PER_PART`."""
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    parts: dict[int, list[int]] = {}
    for group, end in enumerate(np.cumsum(sizes).tolist()):
        parts.setdefault((end - 1) // DOCUMENTS_PER_PART, []).append(group)
    return [Part(path, tuple(groups)) for groups in parts.values()]


def read_batches(part: Part, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Read some columns of the documents of a part."""
    with pq.ParquetFile(part.path, pre_buffer=False) as parquet:
        yield from parquet.iter_batches(
            DOCUMENTS_PER_BATCH, row_groups=list(part.groups), columns=columns
        )


def tokenize_part(task: Encoding, directory: Path) -> None:
    """Tokenize the documents of one part.

    Args:
        task: The documents, and the tokenizer.
        directory: Where the files described above go.
    """
    tokenizer = _tokenizer(ShardVocabulary.read(task.vocabulary).tokens, task.lower_case)
    counts = np.zeros(4, np.int64)
    with (
        (directory / "ids.bin").open("wb") as ids,
        (directory / "characters.bin").open("wb") as characters,
        pq.ParquetWriter(directory / "documents.parquet", PART_SCHEMA) as documents,
    ):
        for batch in read_batches(task.part, ["id", "title", "text"]):
            stream = tokenizer.encode(batch["text"])
            write_array(ids, stream.ids.astype(TOKEN_DTYPE, copy=False))
            write_array(characters, stream.characters.astype(CHARACTERS_DTYPE, copy=False))
            columns = [batch["id"], batch["title"], pa.array(stream.lengths)]
            documents.write_batch(pa.record_batch(columns, schema=PART_SCHEMA))
            of_unknown = stream.characters[stream.ids == UNK_TOKEN_ID]
            counts += (
                len(stream),
                stream.characters.sum(dtype=np.int64),
                len(of_unknown),
                of_unknown.sum(dtype=np.int64),
            )
    names = ("tokens", "characters", "unknown_tokens", "unknown_characters")
    write_json(directory / "facts.json", dict(zip(names, counts.tolist(), strict=True)))


@lru_cache(maxsize=1)
def _tokenizer(tokens: tuple[str, ...], lower_case: bool) -> FastTokenizer:
    """Built once per process, not once per part."""
    return FastTokenizer(text_tokenizer(tokens, lower_case=lower_case), end=EOS_TOKEN_ID)


def text_tokenizer(tokens: Sequence[str], *, lower_case: bool) -> "Tokenizer":
    """Make the tokenizer of documents: it finds no special tokens in a text.

    An article about BERT may contain "[SEP]", which does not end a document there.
    """
    backend: Tokenizer = make_tokenizer(tokens, lower_case=lower_case).backend_tokenizer
    backend.encode_special_tokens = True
    return backend


def read_tokens(directory: Path) -> Iterator[tuple[pa.Table, TokenStream]]:
    """Read a finished part.

    Yields:
        Some documents (`id`, `title`) and their tokens.
    """
    with (
        pq.ParquetFile(directory / "documents.parquet", pre_buffer=False) as documents,
        (directory / "ids.bin").open("rb") as ids,
        (directory / "characters.bin").open("rb") as characters,
    ):
        for batch in documents.iter_batches(DOCUMENTS_PER_BATCH):
            lengths = batch["num_tokens"].to_numpy()
            size = int(lengths.sum())
            stream = TokenStream(
                np.fromfile(ids, TOKEN_DTYPE, size),
                np.fromfile(characters, CHARACTERS_DTYPE, size),
                lengths,
            )
            yield pa.Table.from_batches([batch]), stream
