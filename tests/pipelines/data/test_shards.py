"""Shards give back what was written, in any order, and refuse damage."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.base.artifacts import write_manifest
from pipelines.base.errors import UserError
from pipelines.data.shards import ShardReader, ShardWriter, fixed_binary


def make_shards(directory: Path, tokens_NL: np.ndarray, per_shard: int) -> None:
    writer = ShardWriter(
        directory, "train", sequence_length=tokens_NL.shape[1], sequences_per_shard=per_shard
    )
    for start in range(0, len(tokens_NL), 5):
        writer.append(tokens_NL[start : start + 5])
    facts = {"sequence_length": tokens_NL.shape[1], "sequences": {"train": len(tokens_NL)}}
    write_manifest(directory, stage="test", facts=facts)


@given(count=st.integers(1, 40), per_shard=st.integers(1, 17), seed=st.integers(0, 99))
def test_gather_equals_indexing(
    tmp_path_factory: pytest.TempPathFactory, count: int, per_shard: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tokens_NL = rng.integers(0, 21128, size=(count, 8), dtype=np.uint16)
    directory = tmp_path_factory.mktemp("shards")
    make_shards(directory, tokens_NL, per_shard)
    reader = ShardReader(directory, "train")
    indices_B = rng.integers(0, count, size=13)
    assert np.array_equal(reader.gather(indices_B), tokens_NL[indices_B])
    assert np.array_equal(np.concatenate(list(reader)), tokens_NL)


@pytest.mark.parametrize("index", [-7, -6, -1, 6, 7])
def test_an_index_of_no_sequence_is_refused(tmp_path: Path, index: int) -> None:
    make_shards(tmp_path, np.ones((6, 8), dtype=np.uint16), per_shard=4)
    with pytest.raises((IndexError, ValueError)):
        ShardReader(tmp_path, "train").gather(np.array([0, index]))


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    make_shards(tmp_path, np.ones((6, 8), dtype=np.uint16), per_shard=4)
    path = tmp_path / "train-00001.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="expected whole sequences of 16 bytes, got 31 bytes"):
        ShardReader(tmp_path, "train")


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    make_shards(tmp_path, np.ones((6, 8), dtype=np.uint16), per_shard=4)
    (tmp_path / "train-00001.bin").unlink()
    with pytest.raises(UserError, match="expected 6 sequences of split train, got 4"):
        ShardReader(tmp_path, "train")


@pytest.mark.parametrize("tokens", [np.ones((2, 9), np.uint16), np.ones((2, 8), np.int64)])
def test_a_wrong_shape_or_dtype_is_refused(tmp_path: Path, tokens: np.ndarray) -> None:
    writer = ShardWriter(tmp_path, "train", sequence_length=8, sequences_per_shard=4)
    with pytest.raises(ValueError, match="expected"):
        writer.append(tokens)


def test_fixed_binary_is_the_bytes_of_a_sequence() -> None:
    tokens_NL = np.array([[1, 2], [256, 3]], dtype=np.uint16)
    assert fixed_binary(tokens_NL).to_pylist() == [b"\x01\x00\x02\x00", b"\x00\x01\x03\x00"]
