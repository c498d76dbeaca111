"""Clean documents to packed sequences: `python -m pipelines.tokenize`.

The documents of a split, each followed by [SEP], form one stream that is cut
into sequences of one length; what does not fill the last one is dropped and
counted. The layout of the output is described in `pipelines/data/shards.py`. Documents are
tokenized block by block (`pipelines/data/tokenizer/block.py`), in as many processes as `workers`
says; finished blocks are kept if the stage is killed.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.base.artifacts import (
    publish_directory,
    read_json,
    read_manifest,
    sha256_file,
    write_manifest,
)
from pipelines.base.resumable_parts import shard_work
from pipelines.base.run_stage import run_stage
from pipelines.base.workspace import SPLITS, Workspace
from pipelines.data.text.vocabulary import (
    EOS_TOKEN_ID,
    UNK_TOKEN_ID,
    VOCABULARY_SIZE,
    vocabulary_file,
)
from pipelines.data.tokenizer.block import document_blocks, read_tokens, tokenize_block
from pipelines.data.tokenizer.packing import Packer
from pipelines.params import TokenizeParams, load_params

log = logging.getLogger(__name__)


def tokenize(
    params: TokenizeParams,
    documents: Path,
    output: Path,
    *,
    work: Path | None = None,
    workers: int = 1,
) -> None:
    """Tokenize and pack every split.

    Args:
        params: The section `tokenize`.
        documents: The output of `clean`.
        output: The directory to publish.
        work: Where finished shards are kept if the stage is killed; by default beside `output`.
        workers: Processes; the output does not depend on it.

    Raises:
        UserError: If the vocabulary cannot be had, or an unfinished run has another number of
            shards.
    """
    vocabulary = sha256_file(vocabulary_file(params.vocabulary))
    blocks = {
        split: document_blocks(documents / f"{split}.parquet", params.vocabulary, vocabulary)
        for split in SPLITS
    }
    with (
        shard_work(
            work or output.with_name(f".{output.name}-work"),
            stage="tokenize",
            fingerprint={
                "documents": read_manifest(documents)["root"],
                "params": params.model_dump(),
                "vocabulary": vocabulary,
            },
            shards=sum(map(len, blocks.values())),
            workers=workers,
        ) as shards,
        publish_directory(output) as building,
    ):
        counts = {
            split: _pack_split(
                shards.map(f"tokenize-{split}", tokenize_block, blocks[split]),
                Packer(building, split, params),
            )
            for split in SPLITS
        }
        facts = {
            "sequence_length": params.sequence_length,
            "sequences_per_shard": params.sequences_per_shard,
            "vocabulary": params.vocabulary,
            "vocabulary_size": VOCABULARY_SIZE,
            "vocabulary_sha256": vocabulary,
            "eos_token_id": EOS_TOKEN_ID,
            "unk_token_id": UNK_TOKEN_ID,
            **{name: {split: counts[split][name] for split in SPLITS} for name in counts["train"]},
        }
        write_manifest(building, stage="tokenize", facts=facts)
    log.info("sequences %s", facts["sequences"])


def _pack_split(shards: Sequence[Path], packer: Packer) -> dict[str, Any]:
    """Write the sequences and side tables of one split; return its counts."""
    totals: Counter[str] = Counter()
    for shard in shards:
        for table, stream in read_tokens(shard):
            packer.append(table, stream.ids, stream.characters, stream.lengths)
        totals.update(read_json(shard / "facts.json"))
    dropped = packer.close()
    return {
        "sequences": packer.num_sequences,
        "tokens": totals["tokens"],
        "dropped_tokens": dropped,
        "unk_token_rate": totals["unknown_tokens"] / max(totals["tokens"], 1),
        "unk_character_rate": totals["unknown_characters"] / max(totals["characters"], 1),
    }


def main() -> None:
    """Run the stage for the profile in use."""
    params = load_params()
    workspace = Workspace(params.name)
    tokenize(
        params.profile.tokenize,
        workspace.documents,
        workspace.tokens,
        work=workspace.runs / f"{params.name}-tokenize",
        workers=params.profile.workers,
    )


if __name__ == "__main__":
    run_stage(main)
