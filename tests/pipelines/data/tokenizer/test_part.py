"""A tokenized part: its documents and tokens come back."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import pipelines.data.tokenizer.part as module
from pipelines.base.artifacts import read_json
from pipelines.base.errors import UserError
from pipelines.data.text.shard_vocabulary import VOCABULARY_NAME
from pipelines.data.text.vocabulary import EOS_TOKEN_ID
from pipelines.data.tokenizer.part import (
    Encoding,
    Part,
    document_parts,
    read_tokens,
    tokenize_part,
)
from tests.support import write_base_vocabulary


def test_row_groups_are_divided_into_parts(
    write_corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = pq.read_table(write_corpus(["字"] * 10))
    path = tmp_path / "groups.parquet"
    pq.write_table(table, path, row_group_size=2)
    monkeypatch.setattr(module, "DOCUMENTS_PER_PART", 4)
    assert [part.groups for part in document_parts(path)] == [(0, 1), (2, 3), (4,)]


def test_a_part_gives_back_its_documents_and_tokens(write_corpus, tmp_path: Path) -> None:
    path = write_corpus(["曹操\U0001f9ff", "", "玄德"])
    write_base_vocabulary(tmp_path, 8)
    tokenize_part(Encoding(Part(path, (0,)), tmp_path, lower_case=True), tmp_path)
    ((table, stream),) = read_tokens(tmp_path)
    assert table["id"].to_pylist() == ["d0000", "d0001", "d0002"]
    assert stream.lengths.tolist() == [4, 1, 3]
    assert np.flatnonzero(stream.ids == EOS_TOKEN_ID).tolist() == [3, 4, 7]
    assert stream.characters.tolist() == [1, 1, 1, 0, 0, 1, 1, 0]
    facts = read_json(tmp_path / "facts.json")
    assert facts == {"tokens": 8, "characters": 5, "unknown_tokens": 1, "unknown_characters": 1}


def test_without_the_stages_vocabulary_nothing_is_tokenized(write_corpus, tmp_path: Path) -> None:
    task = Encoding(Part(write_corpus(["曹操"]), (0,)), tmp_path, lower_case=True)
    with pytest.raises(UserError, match=f"{VOCABULARY_NAME}, found no such file"):
        tokenize_part(task, tmp_path)
