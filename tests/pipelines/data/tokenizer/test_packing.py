"""Packing: the stream in any number of pieces gives the sequences of one."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.shards import SequenceFiles, shard_paths
from pipelines.data.tokenizer.packing import Packer, pack
from pipelines.params import TokenizeParams

LENGTH = 8


def test_pack_keeps_the_rest() -> None:
    packed_NL, rest = pack(np.arange(10), 4)
    assert packed_NL.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert rest.tolist() == [8, 9]


@pytest.mark.parametrize("pieces", [[(0, 3)], [(0, 1), (1, 3)], [(0, 1), (1, 2), (2, 3)]])
def test_a_stream_is_packed_with_its_side_tables(
    pieces: list[tuple[int, int]], tmp_path: Path
) -> None:
    """Three documents of 5, 9 and 6 tokens; id 100 is [UNK] and stands for 3 characters."""
    lengths = np.array([5, 9, 6])
    ids = np.arange(200, 220, dtype=np.uint16)
    ids[[0, 3, 9]] = 100
    characters = np.where(ids == 100, 3, 1).astype(np.int32)
    edges = np.append(0, np.cumsum(lengths))
    names = pa.table({"id": ["a", "b", "c"], "title": ["甲", "乙", ""]})
    params = TokenizeParams(
        vocabulary="bert-base-chinese",
        lower_case=True,
        learn_characters=True,
        sequence_length=LENGTH,
        sequences_per_shard=1,
    )
    packer = Packer(tmp_path, "train", params)
    for first, last in pieces:
        part = slice(edges[first], edges[last])
        documents = names.slice(first, last - first)
        packer.append(documents, ids[part], characters[part], lengths[first:last])
    assert packer.num_sequences == 2
    assert packer.close() == 4
    packed = np.concatenate(list(SequenceFiles(shard_paths(tmp_path, "train"), LENGTH)))
    assert packed.reshape(-1).tolist() == ids[:16].tolist()
    sequences = pq.read_table(tmp_path / "train.sequences.parquet").to_pydict()
    # The first token of a sequence is not predicted: its characters do not count.
    assert sequences == {
        "source_sequence": [0, 1],
        "characters": [7 + 2, 7 + 2],
        "unk_characters": [3, 3],
    }
    table = pq.read_table(tmp_path / "train.documents.parquet").to_pydict()
    assert table["start_token"] == [0, 5, 14]
    assert table["num_tokens"] == [5, 9, 6]
    assert table["id"] == ["a", "b", "c"]
