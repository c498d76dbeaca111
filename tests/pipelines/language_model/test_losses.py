"""Losses by item: their documents, the name of their set, and what a file may hold."""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.base.errors import UserError
from pipelines.data.shards import DOCUMENT_SCHEMA, SEQUENCE_SCHEMA, ShardReader
from pipelines.language_model.losses import (
    Losses,
    documents_of,
    evaluation_set_sha256,
    losses_of,
)

LENGTH = 4
TOKENS = np.arange(16, dtype=np.uint16).reshape(4, LENGTH) * 300
# Sequences 0, 2, 3 and 5 of the stream are left of six.
SOURCE = [0, 2, 3, 5]
# a: tokens 0-6, b: 7-11, c: 12 (a single one), d: 13-23.
STARTS = {"a": 0, "b": 7, "c": 12, "d": 13}


@pytest.fixture
def reader(write_shards: Callable[..., Path]) -> ShardReader:
    directory = write_shards({"train": TOKENS, "validation": TOKENS, "test": TOKENS})
    sequences = pa.table([SOURCE, [30, 40, 50, 60], [0] * 4], schema=SEQUENCE_SCHEMA)
    pq.write_table(sequences, directory / "test.sequences.parquet")
    documents = [list(STARTS), [""] * 4, list(STARTS.values()), [7, 5, 1, 11]]
    pq.write_table(
        pa.table(documents, schema=DOCUMENT_SCHEMA), directory / "test.documents.parquet"
    )
    return ShardReader(directory, "test")


def test_a_sequence_belongs_to_the_document_in_which_it_begins(reader: ShardReader) -> None:
    # They begin at tokens 0, 8, 12 and 20 of the stream from which two were removed.
    assert documents_of(reader, np.arange(4)).tolist() == ["a", "b", "c", "d"]
    assert documents_of(reader, np.array([3, 0])).tolist() == ["d", "a"]


def test_losses_are_spread_over_the_characters_of_their_sequences(reader: ShardReader) -> None:
    found = losses_of(reader, np.array([3, 1]), np.array([1.5, 2.5]))
    assert found.document.tolist() == ["d", "b"]
    assert found.units.tolist() == [60.0, 40.0]
    assert found.units.dtype == np.float64
    assert found.loss_nats.tolist() == [1.5, 2.5]


def test_a_set_is_named_by_its_tokens_in_order(reader: ShardReader) -> None:
    little_endian = struct.pack("<8H", *TOKENS[2].tolist(), *TOKENS[0].tolist())
    name = evaluation_set_sha256(reader, np.array([2, 0]))
    assert name == hashlib.sha256(little_endian).hexdigest()
    assert name != evaluation_set_sha256(reader, np.array([0, 2]))


def test_what_was_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "losses.parquet"
    written = Losses(
        np.array(["a", "乙"], dtype=object), np.array([0.0, 2.0]), np.array([0.1, -3.0])
    )
    written.write(path)
    read = Losses.read(path)
    assert read.document.tolist() == ["a", "乙"]
    assert read.units.tolist() == [0.0, 2.0]
    assert read.loss_nats.tolist() == [0.1, -3.0]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("units", "losses"), [([1.0], [np.nan]), ([1.0], [np.inf]), ([0.0], [1.0]), ([], [])]
)
def test_losses_that_cannot_be_compared_are_refused(
    tmp_path: Path, units: list[float], losses: list[float]
) -> None:
    path = tmp_path / "losses.parquet"
    names = np.array(["a"] * len(units), dtype=object)
    Losses(names, np.array(units), np.array(losses)).write(path)
    with pytest.raises(UserError, match=str(len(units))):
        Losses.read(path)


@pytest.mark.parametrize("content", [None, b"", b"no parquet", "other columns"])
def test_a_file_that_holds_no_losses_is_refused(
    tmp_path: Path, content: bytes | str | None
) -> None:
    path = tmp_path / "losses.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        pq.write_table(pa.table({"document": [1], "loss": ["a"]}), path)
    with pytest.raises(UserError, match=r"losses\.parquet"):
        Losses.read(path)
