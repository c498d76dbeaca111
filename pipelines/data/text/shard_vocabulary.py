"""The vocabulary beside the shards: `vocabulary.parquet`, one row per id.

    id           0, 1, 2, ...
    token        its text; `##` before a piece that continues a word
    possible     whether the shards can hold it: some text makes the tokenizer produce it, or it
                 is [UNK] or [SEP]
    train_count  how often the train sequences beside it hold it

`tokenize` writes it, and `decontaminate` again, with the counts of the final train split. What
reads shards takes the tokens from here, never from the vocabulary that `params.yaml` names: some
entries may have been given to characters of the corpus.

Shape legend: V ids.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.base.artifacts import read_manifest
from pipelines.base.errors import UserError
from pipelines.data.text.vocabulary import make_tokenizer

if TYPE_CHECKING:
    from transformers import BertTokenizerFast

VOCABULARY_NAME = "vocabulary.parquet"
VOCABULARY_SCHEMA = pa.schema(
    [
        ("id", pa.int32()),
        ("token", pa.string()),
        ("possible", pa.bool_()),
        ("train_count", pa.int64()),
    ]
)


@dataclass(frozen=True)
class ShardVocabulary:
    """What each id is, and how often train has it.

    Args:
        tokens: The text of every id.
        possible_V: (V,) bool, whether the shards can hold the id.
        train_count_V: (V,) int64, its occurrences in the train sequences.
    """

    tokens: tuple[str, ...]
    possible_V: npt.NDArray[np.bool_]
    train_count_V: npt.NDArray[np.int64]

    @classmethod
    def read(cls, directory: Path) -> "ShardVocabulary":
        """Read the vocabulary of a directory of shards.

        Raises:
            UserError: If the file is missing.
        """
        path = directory / VOCABULARY_NAME
        if not path.is_file():
            raise UserError(
                f"expected {path}, found no such file",
                "make the shards again with `dvc repro decontaminate`",
            )
        table = pq.read_table(path)
        return cls(
            tuple(table["token"].to_pylist()),
            table["possible"].to_numpy(),
            table["train_count"].to_numpy(),
        )

    def write(self, directory: Path) -> None:
        """Write it beside shards."""
        columns = [np.arange(len(self.tokens)), self.tokens, self.possible_V, self.train_count_V]
        table = pa.table(columns, schema=VOCABULARY_SCHEMA)
        pq.write_table(table, directory / VOCABULARY_NAME, compression="zstd")


def shard_tokenizer(directory: Path) -> "BertTokenizerFast":
    """Make the tokenizer that made the shards of a directory.

    Raises:
        UserError: If the directory has no vocabulary.
    """
    tokens = ShardVocabulary.read(directory).tokens
    return make_tokenizer(tokens, lower_case=bool(read_manifest(directory)["lower_case"]))
