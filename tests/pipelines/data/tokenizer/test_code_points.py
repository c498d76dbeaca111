"""The table of code points: what stands alone, and a damaged file is replaced."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from pipelines.data.text.vocabulary import load_tokenizer
from pipelines.data.tokenizer.code_points import (
    CHUNK,
    SPACE,
    cache_path,
    code_point_table,
    is_provable,
    standing_forms,
)


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    return load_tokenizer("bert-base-chinese").backend_tokenizer


def test_only_the_steps_of_bert_are_provable(backend: Tokenizer) -> None:
    assert is_provable(backend)
    assert not is_provable(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")))


def test_the_table_knows_what_stands_alone(backend: Tokenizer) -> None:
    table = code_point_table(backend)
    vocabulary = backend.get_vocab()
    for character in "中國，。！「a":
        alone = unicodedata.category(character) in ("Lo", "Po", "Ps")
        assert table[ord(character)] == (vocabulary[character] if alone else CHUNK)
    assert table[0x3000] == table[0x2028] == table[ord("\n")] == SPACE
    assert table[0x0301] == table[0x200D] == table[ord("か")] == CHUNK
    # Han of all planes stand alone, most of them as [UNK].
    assert np.count_nonzero(table < CHUNK) > 80_000


@pytest.mark.slow
def test_a_damaged_table_is_derived_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load_tokenizer("bert-base-chinese").backend_tokenizer
    expected = standing_forms(backend)
    content = bytearray(cache_path(backend).read_bytes())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cache_path(backend)
    path.parent.mkdir()
    whole = bytes(content)
    content[5000] ^= 1
    path.write_bytes(content)
    assert np.array_equal(standing_forms(backend), expected)
    assert path.read_bytes() == whole
