"""Possible ids: each is produced by a text, and no text produces another."""

import random

import numpy as np
import pytest
from tokenizers import Tokenizer

from pipelines.data.text.vocabulary import (
    CONTINUES,
    EOS_TOKEN_ID,
    UNK_TOKEN_ID,
    vocabulary_tokens,
)
from pipelines.data.tokenizer.code_points import CHUNK, code_point_table
from pipelines.data.tokenizer.part import text_tokenizer
from pipelines.data.tokenizer.possible import BEGINNINGS, possible_ids
from tests.pipelines.data.tokenizer.test_fast import adversarial

TOKENS = vocabulary_tokens("bert-base-chinese")
FUZZ_STRINGS = 5_000


@pytest.fixture(scope="module", params=[True, False], ids=["lower", "cased"])
def backend(request: pytest.FixtureRequest) -> Tokenizer:
    return text_tokenizer(TOKENS, lower_case=request.param)


@pytest.fixture(scope="module")
def possible(backend: Tokenizer) -> np.ndarray:
    return possible_ids(backend)


def test_every_possible_id_comes_out_of_a_text(backend: Tokenizer, possible: np.ndarray) -> None:
    """One text each, by the tokenizer itself; [SEP] is written by the stage."""
    missing = set(np.flatnonzero(possible).tolist()) - {UNK_TOKEN_ID, EOS_TOKEN_ID}
    for beginning in BEGINNINGS:
        indices = sorted(missing)
        texts = [beginning + TOKENS[index].removeprefix(CONTINUES) for index in indices]
        encodings = backend.encode_batch(texts, add_special_tokens=False)
        found = zip(indices, encodings, strict=True)
        missing -= {index for index, encoding in found if index in encoding.ids}
    assert not {TOKENS[index] for index in missing}


def test_every_other_id_is_proved_impossible(backend: Tokenizer, possible: np.ndarray) -> None:
    """No normalised word holds its text: a character of it is changed, removed or split off."""
    table = code_point_table(backend)
    for index in np.flatnonzero(~possible).tolist():
        token = TOKENS[index]
        piece = token.removeprefix(CONTINUES)
        changed = backend.normalizer.normalize_str(piece) != piece
        split = any(table[ord(character)] != CHUNK for character in piece)
        assert len(token) > 1 or changed, token
        assert changed or split, token


def test_no_text_gives_an_impossible_id(backend: Tokenizer, possible: np.ndarray) -> None:
    """Adversarial strings, and the entries themselves in any order, joined and not."""
    generator = random.Random(0)
    texts = [adversarial(generator) for _ in range(FUZZ_STRINGS)]
    pieces = [token.removeprefix(CONTINUES) for token in TOKENS]
    texts += ["".join(generator.choices([*TOKENS, *pieces], k=4)) for _ in range(FUZZ_STRINGS)]
    seen = np.zeros(len(TOKENS), np.bool_)
    for encoding in backend.encode_batch(texts, add_special_tokens=False):
        seen[encoding.ids] = True
    assert not (seen & ~possible).any()


def test_the_impossible_are_what_they_are_known_to_be(possible: np.ndarray) -> None:
    impossible = [TOKENS[index] for index in np.flatnonzero(~possible)]
    han = [token for token in impossible if token[:2] == CONTINUES and "一" <= token[2:] <= "鿿"]
    assert len(impossible) == 7548
    assert len(han) == 7321
    assert {"[unused1]", "[unused99]", "[PAD]", "[CLS]", "[MASK]", "...", "##。"} <= set(impossible)
