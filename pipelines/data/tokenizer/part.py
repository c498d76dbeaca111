"""Tokenize some documents, before packing; a worker of `tokenize` does this.

ids.bin            uint16, the documents one after another, each followed by [SEP]
characters.bin     int32, source characters of each token
documents.parquet  `id`, `title`, `num_tokens`
facts.json         counts
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.base.artifacts import sha256_file, write_json
from pipelines.base.errors import UserError
from pipelines.data.shards import TOKEN_DTYPE
from pipelines.data.text.vocabulary import (
    EOS_TOKEN_ID,
    UNK_TOKEN_ID,
    load_tokenizer,
    vocabulary_file,
)
from pipelines.data.tokenizer.fast import FastTokenizer, TokenStream
from pipelines.params import TokenizeParams

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DOCUMENTS_PER_PART = 16_384
DOCUMENTS_PER_BATCH = 1024
CHARACTERS_DTYPE = np.dtype("<i4")
PART_SCHEMA = pa.schema([("id", pa.string()), ("title", pa.string()), ("num_tokens", pa.int64())])


@dataclass(frozen=True)
class Part:
    """What a worker of `tokenize` needs to know.

    Args:
        path: A parquet file of clean documents.
        groups: Its row groups to read.
        vocabulary: Name or path.
        vocabulary_sha256: Hash of its file.
        lower_case: Whether the tokenizer lower-cases.
    """

    path: Path
    groups: tuple[int, ...]
    vocabulary: str
    vocabulary_sha256: str
    lower_case: bool


def document_parts(path: Path, params: TokenizeParams, vocabulary_sha256: str) -> list[Part]:
    """Divide the documents of a split into parts of about `DOCUMENTS_PER_PART`."""
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    parts: dict[int, list[int]] = {}
    for group, end in enumerate(np.cumsum(sizes).tolist()):
        parts.setdefault((end - 1) // DOCUMENTS_PER_PART, []).append(group)
    return [
        Part(path, tuple(groups), params.vocabulary, vocabulary_sha256, params.lower_case)
        for groups in parts.values()
    ]


def tokenize_part(part: Part, directory: Path) -> None:
    """Tokenize the documents of one part.

    Args:
        part: The documents.
        directory: Where the files described above go.

    Raises:
        UserError: If this machine's vocabulary is not the stage's.
    """
    tokenizer = _tokenizer(part.vocabulary, part.vocabulary_sha256, part.lower_case)
    counts = np.zeros(4, np.int64)
    with (
        pq.ParquetFile(part.path, pre_buffer=False) as parquet,
        (directory / "ids.bin").open("wb") as ids,
        (directory / "characters.bin").open("wb") as characters,
        pq.ParquetWriter(directory / "documents.parquet", PART_SCHEMA) as documents,
    ):
        for batch in parquet.iter_batches(
            DOCUMENTS_PER_BATCH, row_groups=list(part.groups), columns=["id", "title", "text"]
        ):
            stream = tokenizer.encode(batch["text"])
            stream.ids.astype(TOKEN_DTYPE, copy=False).tofile(ids)
            stream.characters.astype(CHARACTERS_DTYPE, copy=False).tofile(characters)
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
def _tokenizer(vocabulary: str, expected_sha256: str, lower_case: bool) -> FastTokenizer:
    """Built once per process, not once per part."""
    got = sha256_file(vocabulary_file(vocabulary))
    if got != expected_sha256:
        raise UserError(
            f"vocabulary {vocabulary}: expected sha256 {expected_sha256}, got {got}",
            "install the stage's vocabulary for every worker (requirements-data.txt)",
        )
    return FastTokenizer(text_tokenizer(vocabulary, lower_case=lower_case), end=EOS_TOKEN_ID)


def text_tokenizer(vocabulary: str, *, lower_case: bool) -> "Tokenizer":
    """Make the tokenizer of documents: it finds no special tokens in a text.

    An article about BERT may contain "[SEP]", which does not end a document there.
    """
    backend = load_tokenizer(vocabulary, lower_case=lower_case).backend_tokenizer
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
