"""Find the sequences of one shard that later splits have; a worker of `decontaminate` does this.

matches.parquet   one row per such sequence, with what it matches
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.overlap.reference import Match, Reference
from pipelines.data.shards import TOKEN_DTYPE, SequenceFiles, shard_paths
from pipelines.params import DecontaminateParams

MATCHES = "matches.parquet"
MATCH_SCHEMA = pa.schema(
    [
        ("sequence", pa.int64()),
        ("split", pa.string()),
        ("matched", pa.int64()),
        ("method", pa.string()),
        ("containment", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Lookup:
    """What a worker of `decontaminate` needs to know.

    Args:
        path: The shard whose sequences are looked up.
        reference: The directory with the clean shards of later splits.
        splits: The later splits.
        length: Tokens per sequence.
        params: The section `decontaminate`.
    """

    path: Path
    reference: Path
    splits: tuple[str, ...]
    length: int
    params: DecontaminateParams


def find_shared(lookup: Lookup, directory: Path) -> None:
    """Write the sequences of a shard that later splits have to `matches.parquet`.

    Args:
        lookup: The shard and what it is compared with.
        directory: Where the file goes.
    """
    reference = _reference(
        lookup.reference, lookup.splits, lookup.length, lookup.params.window_characters
    )
    # The whole shard at once: every call reads all of the reference.
    tokens_NL = np.fromfile(lookup.path, TOKEN_DTYPE).reshape(-1, lookup.length)
    matches = reference.matches(tokens_NL, max_containment=lookup.params.max_containment)
    table = pa.Table.from_pylist([asdict(match) for match in matches], schema=MATCH_SCHEMA)
    pq.write_table(table, directory / MATCHES)


@lru_cache(maxsize=1)
def _reference(
    directory: Path, splits: tuple[str, ...], length: int, window_tokens: int
) -> Reference:
    """Built once per process, not once per shard."""
    files = {split: SequenceFiles(shard_paths(directory, split), length) for split in splits}
    return Reference(files, window_tokens)


def read_matches(directory: Path) -> list[Match]:
    """Read what `find_shared` wrote."""
    return [Match(**row) for row in pq.read_table(directory / MATCHES).to_pylist()]
