"""Clean documents to packed sequences: `python -m pipelines.tokenize`.

The documents of a split, each followed by [SEP], form one stream that is cut into sequences
of one length; a last one that is not full is dropped and counted. `pipelines/data/shards.py`
describes the layout of the output.

Documents are tokenized in parts (`pipelines/data/tokenizer/part.py`) by `workers` processes;
finished parts are kept if the stage is killed.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.base.artifacts import (
    publish_directory,
    read_json,
    read_manifest,
    sha256_file,
    write_manifest,
)
from pipelines.base.errors import UserError
from pipelines.base.part_workers import map_parts
from pipelines.base.resumable_parts import resumable
from pipelines.base.run_stage import run_stage
from pipelines.base.workspace import SPLITS, Workspace
from pipelines.data.shards import count_train_ids
from pipelines.data.text.shard_vocabulary import ShardVocabulary
from pipelines.data.text.vocabulary import (
    EOS_TOKEN_ID,
    UNK_TOKEN_ID,
    VOCABULARY_SIZE,
    vocabulary_file,
    vocabulary_tokens,
)
from pipelines.data.tokenizer.lacking import (
    count_part,
    give_entries,
    lacking_characters,
    read_counts,
)
from pipelines.data.tokenizer.packing import Packer
from pipelines.data.tokenizer.part import (
    Encoding,
    Part,
    document_parts,
    read_tokens,
    text_tokenizer,
    tokenize_part,
)
from pipelines.data.tokenizer.possible import possible_ids
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
        work: Where finished parts are kept if the stage is killed; by default beside `output`.
        workers: Processes; the output does not depend on it.

    Raises:
        UserError: If the vocabulary cannot be found, or a document is lost.
    """
    sha256 = sha256_file(vocabulary_file(params.vocabulary))
    parts = {split: document_parts(documents / f"{split}.parquet") for split in SPLITS}
    with (
        resumable(
            output,
            work,
            stage="tokenize",
            fingerprint={
                "documents": read_manifest(documents)["root"],
                "params": params.model_dump(),
                "vocabulary": sha256,
            },
        ) as unfinished,
        publish_directory(output) as building,
    ):
        vocabulary, learned = _make_vocabulary(params, parts["train"], unfinished, workers)
        # The workers read it there.
        vocabulary.write(unfinished)
        counts = {
            split: _pack_split(
                map_parts(
                    tokenize_part,
                    [Encoding(part, unfinished, params.lower_case) for part in parts[split]],
                    unfinished,
                    label=f"tokenize-{split}",
                    workers=workers,
                ),
                Packer(building, split, params),
            )
            for split in SPLITS
        }
        facts: dict[str, Any] = {
            "sequence_length": params.sequence_length,
            "sequences_per_shard": params.sequences_per_shard,
            "vocabulary": params.vocabulary,
            "lower_case": params.lower_case,
            "vocabulary_size": VOCABULARY_SIZE,
            "vocabulary_sha256": sha256,
            "learned_characters": learned,
            "eos_token_id": EOS_TOKEN_ID,
            "unk_token_id": UNK_TOKEN_ID,
            **{name: {split: counts[split][name] for split in SPLITS} for name in counts["train"]},
        }
        _check_rows(read_manifest(documents)["documents"], facts["documents"])
        counts_V = count_train_ids(building, params.sequence_length, VOCABULARY_SIZE)
        replace(vocabulary, train_count_V=counts_V).write(building)
        write_manifest(building, stage="tokenize", facts=facts)
    log.info("sequences %s, characters learned %d", facts["sequences"], len(learned))


def _make_vocabulary(
    params: TokenizeParams, train: Sequence[Part], unfinished: Path, workers: int
) -> tuple[ShardVocabulary, dict[str, int]]:
    """Give entries that no text uses to characters of train; return them with their ids."""
    tokens, learned = vocabulary_tokens(params.vocabulary), dict[str, int]()
    tokenizer = text_tokenizer(tokens, lower_case=params.lower_case)
    possible_V = possible_ids(tokenizer)
    if params.learn_characters:
        counted = map_parts(count_part, train, unfinished, label="count", workers=workers)
        characters = lacking_characters(tokenizer, read_counts(counted))
        tokens, learned = give_entries(tokens, possible_V, characters)
        possible_V[list(learned.values())] = True
    nothing_V = np.zeros(len(tokens), np.int64)
    return ShardVocabulary(tokens, possible_V, nothing_V), learned


def _check_rows(expected: dict[str, int], tokenized: dict[str, int]) -> None:
    """Every clean document must be tokenized."""
    if tokenized != expected:
        raise UserError(
            f"expected the documents that `clean` wrote, {expected}, got {tokenized}",
            "make them again with `dvc repro --force clean`",
        )


def _pack_split(parts: Sequence[Path], packer: Packer) -> dict[str, Any]:
    """Write the sequences and side tables of one split; return its counts."""
    totals: Counter[str] = Counter()
    for part in parts:
        for table, stream in read_tokens(part):
            packer.append(table, stream.ids, stream.characters, stream.lengths)
            totals["documents"] += len(table)
        totals.update(read_json(part / "facts.json"))
    dropped = packer.close()
    return {
        "documents": totals["documents"],
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
