"""Clean documents to packed sequences: `python -m pipelines.tokenize`.

The documents of a split, each followed by [SEP], form one stream that is cut
into sequences of one length; what does not fill the last one is dropped and
counted. The layout of the output is described in `pipelines/shards.py`.

Shape legend: T tokens, N sequences, L sequence length.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.artifacts import publish_directory, sha256_file, write_manifest
from pipelines.fast_tokenizer import FastTokenizer
from pipelines.packing import Packer
from pipelines.params import TokenizeParams, load_params
from pipelines.stage import progress, run_stage
from pipelines.vocabulary import (
    EOS_TOKEN_ID,
    UNK_TOKEN_ID,
    VOCABULARY_SIZE,
    load_tokenizer,
    vocabulary_file,
)
from pipelines.workspace import SPLITS, Workspace

log = logging.getLogger(__name__)

DOCUMENTS_A_BATCH = 1024


def tokenize(params: TokenizeParams, documents: Path, output: Path) -> None:
    """Tokenize and pack every split.

    Args:
        params: The section `tokenize`.
        documents: The output of `clean`.
        output: The directory to publish.

    Raises:
        UserError: If the vocabulary cannot be had.
    """
    backend = load_tokenizer(params.vocabulary).backend_tokenizer
    # An article about BERT says "[SEP]"; in a text that is no end of a document.
    backend.encode_special_tokens = True
    tokenizer = FastTokenizer(backend, end=EOS_TOKEN_ID)
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
    tokenizer: FastTokenizer, path: Path, directory: Path, split: str, params: TokenizeParams
) -> dict[str, Any]:
    """Write the shards and side tables of one split; return its counts."""
    packer = Packer(directory, split, params)
    unknown = np.zeros(2, np.int64)
    total = np.zeros(2, np.int64)
    for table in _batches(path, split):
        stream = tokenizer.encode(table["text"])
        packer.append(table, stream.ids, stream.characters, stream.lengths)
        is_unknown = stream.ids == UNK_TOKEN_ID
        unknown += (np.count_nonzero(is_unknown), stream.characters[is_unknown].sum(dtype=np.int64))
        total += (len(stream), stream.characters.sum(dtype=np.int64))
    dropped = packer.close()
    return {
        "sequences": packer.num_sequences,
        "tokens": int(total[0]),
        "dropped_tokens": dropped,
        "unk_token_rate": int(unknown[0]) / max(int(total[0]), 1),
        "unk_character_rate": int(unknown[1]) / max(int(total[1]), 1),
    }


def _batches(path: Path, split: str) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as parquet:
        batches = parquet.iter_batches(DOCUMENTS_A_BATCH, columns=["id", "title", "text"])
        total = -(-parquet.metadata.num_rows // DOCUMENTS_A_BATCH)
        for batch in progress(batches, total=total, unit="batch", label=f"tokenize {split}"):
            yield pa.Table.from_batches([batch])


def main() -> None:
    """Run the stage for the profile in use."""
    params = load_params()
    workspace = Workspace(params.name)
    tokenize(params.profile.tokenize, workspace.documents, workspace.tokens)


if __name__ == "__main__":
    run_stage(main)
