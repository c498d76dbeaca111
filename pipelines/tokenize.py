"""Clean documents to packed sequences: `python -m pipelines.tokenize`.

The documents of a split, each followed by [SEP], form one stream that is cut
into sequences of one length; what does not fill the last one is dropped and
counted. The layout of the output is described in `pipelines/shards.py`.

Shape legend: T tokens, N sequences, L sequence length.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.artifacts import publish_directory, sha256_file, write_manifest
from pipelines.params import TokenizeParams, load_params
from pipelines.shards import DOCUMENT_SCHEMA, SEQUENCE_SCHEMA, ShardWriter
from pipelines.stage import progress, run_stage
from pipelines.vocabulary import (
    EOS_TOKEN_ID,
    UNK_TOKEN_ID,
    VOCABULARY_SIZE,
    load_tokenizer,
    vocabulary_file,
)
from pipelines.workspace import SPLITS, Workspace

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

log = logging.getLogger(__name__)

DOCUMENTS_A_BATCH = 128


@dataclass(frozen=True)
class TokenStream:
    """Tokens with the number of source characters each one stands for.

    Args:
        ids: (T,) uint16.
        characters: (T,) int32, code points; every code point counts once, and
            white space, which no token covers, not at all.
    """

    ids: npt.NDArray[np.uint16]
    characters: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)


def tokenize(params: TokenizeParams, documents: Path, output: Path) -> None:
    """Tokenize and pack every split.

    Args:
        params: The section `tokenize`.
        documents: The output of `clean`.
        output: The directory to publish.

    Raises:
        UserError: If the vocabulary cannot be had.
    """
    tokenizer = load_tokenizer(params.vocabulary).backend_tokenizer
    # An article about BERT says "[SEP]"; in a text that is no end of a document.
    tokenizer.encode_special_tokens = True
    with publish_directory(output) as building:
        counts = {
            split: _pack_split(tokenizer, documents / f"{split}.parquet", building, split, params)
            for split in SPLITS
        }
        facts = {
            "sequence_length": params.sequence_length,
            "sequences_per_shard": params.sequences_per_shard,
            "vocabulary": params.vocabulary,
            "vocabulary_size": VOCABULARY_SIZE,
            "vocabulary_sha256": sha256_file(vocabulary_file(params.vocabulary)),
            "eos_token_id": EOS_TOKEN_ID,
            "unk_token_id": UNK_TOKEN_ID,
            **{name: {split: counts[split][name] for split in SPLITS} for name in counts["train"]},
        }
        write_manifest(building, stage="tokenize", facts=facts)
    log.info("sequences %s", facts["sequences"])


def _pack_split(
    tokenizer: "Tokenizer", path: Path, directory: Path, split: str, params: TokenizeParams
) -> dict[str, Any]:
    """Write the shards and side tables of one split; return its counts."""
    writer = ShardWriter(
        directory,
        split,
        sequence_length=params.sequence_length,
        sequences_per_shard=params.sequences_per_shard,
    )
    identities: list[dict[str, str]] = []
    lengths: list[int] = []
    tables = []
    tokens = unk_tokens = characters = unk_characters = 0
    rest = TokenStream(np.empty(0, np.uint16), np.empty(0, np.int32))
    for table in _batches(path, split):
        identities += table.select(["id", "title"]).to_pylist()
        streams = encode_documents(tokenizer, table["text"].to_pylist())
        lengths += [len(stream) for stream in streams]
        joined = join([rest, *streams])
        tables.append(_write_sequences(writer, joined, params.sequence_length))
        used = len(joined) - len(joined) % params.sequence_length
        for stream in streams:
            unk_T = stream.ids == UNK_TOKEN_ID
            tokens += len(stream)
            unk_tokens += int(unk_T.sum())
            characters += int(stream.characters.sum())
            unk_characters += int(stream.characters[unk_T].sum())
        rest = TokenStream(joined.ids[used:], joined.characters[used:])
    _write_documents(directory / f"{split}.documents.parquet", identities, lengths)
    sequences = pa.concat_tables(tables) if tables else SEQUENCE_SCHEMA.empty_table()
    order = pa.array(np.arange(len(sequences), dtype=np.int64))
    sequences = sequences.set_column(0, SEQUENCE_SCHEMA.field(0), order)
    pq.write_table(sequences, directory / f"{split}.sequences.parquet", compression="zstd")
    return {
        "sequences": writer.num_sequences,
        "tokens": tokens,
        "dropped_tokens": len(rest),
        "unk_token_rate": unk_tokens / max(tokens, 1),
        "unk_character_rate": unk_characters / max(characters, 1),
    }


def _batches(path: Path, split: str) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as parquet:
        batches = parquet.iter_batches(DOCUMENTS_A_BATCH, columns=["id", "title", "text"])
        total = -(-parquet.metadata.num_rows // DOCUMENTS_A_BATCH)
        for batch in progress(batches, total=total, unit="batch", label=f"tokenize {split}"):
            yield pa.Table.from_batches([batch])


def encode_documents(tokenizer: "Tokenizer", texts: list[str]) -> list[TokenStream]:
    """Tokenize documents, each ended by [SEP].

    Args:
        tokenizer: The backend of the fast tokenizer.
        texts: The documents.

    Returns:
        One stream a document; its [SEP] stands for no character.
    """
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [_as_stream(encoding) for encoding in encodings]


def _as_stream(encoding: "Encoding") -> TokenStream:
    ids = np.array([*encoding.ids, EOS_TOKEN_ID], dtype=np.uint16)
    spans = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
    # Several tokens can come from one code point (a Hangul syllable becomes
    # several jamo): the code point counts for the first of them only.
    reached = np.maximum.accumulate(np.concatenate([np.zeros(1, np.int32), spans[:, 1]]))
    fresh = spans[:, 1] - np.maximum(spans[:, 0], reached[:-1])
    characters = np.append(np.maximum(fresh, 0), 0).astype(np.int32)
    return TokenStream(ids, characters)


def join(streams: list[TokenStream]) -> TokenStream:
    """Append streams to each other."""
    return TokenStream(
        np.concatenate([stream.ids for stream in streams]),
        np.concatenate([stream.characters for stream in streams]),
    )


def _write_sequences(writer: ShardWriter, stream: TokenStream, length: int) -> pa.Table:
    """Write the whole sequences of a stream; return their side table."""
    used = len(stream) - len(stream) % length
    ids_NL = stream.ids[:used].reshape(-1, length)
    characters_NL = stream.characters[:used].reshape(-1, length)
    writer.append(ids_NL)
    # Token 0 is never predicted: its characters are nobody's to answer for.
    unk_NL = characters_NL * (ids_NL == UNK_TOKEN_ID)
    return pa.table(
        {
            "source_sequence": np.zeros(len(ids_NL), np.int64),
            "characters": characters_NL[:, 1:].sum(axis=1, dtype=np.int32),
            "unk_characters": unk_NL[:, 1:].sum(axis=1, dtype=np.int32),
        },
        schema=SEQUENCE_SCHEMA,
    )


def _write_documents(path: Path, identities: list[dict[str, str]], lengths: list[int]) -> None:
    ends = np.cumsum(np.array(lengths, dtype=np.int64))
    table = pa.table(
        {
            "id": [identity["id"] for identity in identities],
            "title": [identity["title"] for identity in identities],
            "start_token": ends - lengths,
            "num_tokens": lengths,
        },
        schema=DOCUMENT_SCHEMA,
    )
    pq.write_table(table, path, compression="zstd")


def main() -> None:
    """Run the stage for the profile in use."""
    params = load_params()
    workspace = Workspace(params.name)
    tokenize(params.profile.tokenize, workspace.documents, workspace.tokens)


if __name__ == "__main__":
    run_stage(main)
