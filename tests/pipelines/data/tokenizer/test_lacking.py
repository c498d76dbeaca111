"""Learned characters: the most frequent that the vocabulary lacks, and nothing else changes."""

import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from pipelines.data.text.vocabulary import (
    SPECIAL_TOKENS,
    UNK_TOKEN_ID,
    make_tokenizer,
    vocabulary_tokens,
)
from pipelines.data.tokenizer.code_points import CODE_POINTS
from pipelines.data.tokenizer.fast import FastTokenizer
from pipelines.data.tokenizer.lacking import (
    count_code_points,
    give_entries,
    lacking_characters,
)
from pipelines.data.tokenizer.part import text_tokenizer
from pipelines.data.tokenizer.possible import possible_ids
from tests.pipelines.data.tokenizer.test_fast import adversarial, first_difference

TOKENS = vocabulary_tokens("bert-base-chinese")
FUZZ_STRINGS = 4_000
# Quotes, dashes, ellipsis; Han within and beyond the first plane; compatibility Han that become
# others; half-width marks; a mark that is stripped, a control character, an emoji, capitals.
CORPUS = "“你好”——‘他’……“”𠮷𠮷𠀀鿏㐀\uf900\U0002f81a\ufa1e｢e\u0301\x07\U0001f600ÀΣ“"


def counts_of(texts: list[str]) -> np.ndarray:
    counts = np.zeros(CODE_POINTS, np.int64)
    count_code_points(pa.array(texts), counts)
    return counts


@pytest.mark.parametrize("use_numba", [True, False], ids=["numba", "numpy"])
def test_every_code_point_is_counted(use_numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.data.tokenizer.lacking as module

    monkeypatch.setattr(module, "BATCH_BYTES", 100)
    generator = random.Random(1)
    texts = ["before", *(adversarial(generator) for _ in range(200)), "", "after"]
    counts = np.zeros(CODE_POINTS, np.int64)
    count_code_points(pa.array(texts)[1:-1], counts, use_numba=use_numba)
    found = {chr(point): int(counts[point]) for point in np.flatnonzero(counts)}
    assert found == Counter("".join(texts[1:-1]))


def test_the_most_frequent_come_first_and_only_what_stands_alone() -> None:
    tokenizer = text_tokenizer(TOKENS, lower_case=True)
    characters = lacking_characters(tokenizer, counts_of([CORPUS, "“"]))
    assert characters[0] == "“"
    # Equally frequent ones by code point; what has an entry under its normal form is not there.
    assert characters[1:5] == ["—", "”", "…", "𠮷"]
    assert set("‘’㐀鿏𠀀") <= set(characters)
    assert not set("e\u0301\x07\U0001f600ÀΣ你\uf900\ufa1e") & set(characters)


def test_entries_are_given_and_all_others_stay() -> None:
    tokenizer = text_tokenizer(TOKENS, lower_case=True)
    characters = [chr(point) for point in range(0x20000, 0x20000 + 8000)]
    changed, given = give_entries(TOKENS, possible_ids(tokenizer), ["“", "”", *characters])
    assert (given["“"], given["”"], changed[1], changed[2]) == (1, 2, "“", "”")
    # All 7,548 impossible ones but [PAD], [CLS] and [MASK].
    assert len(given) == 7545
    assert len(set(changed)) == len(changed) == len(TOKENS)
    kept = set(range(len(TOKENS))) - set(given.values())
    assert all(changed[index] == TOKENS[index] for index in kept)
    assert set(SPECIAL_TOKENS) <= set(changed)


@pytest.fixture(scope="module", params=[True, False], ids=["lower", "cased"])
def learned(request: pytest.FixtureRequest):
    """The tokenizer before and after it learned every character of the fuzzed texts."""
    generator = random.Random(2)
    texts = [CORPUS, *(adversarial(generator) for _ in range(FUZZ_STRINGS))]
    before = text_tokenizer(TOKENS, lower_case=request.param)
    characters = lacking_characters(before, counts_of(texts))
    changed, given = give_entries(TOKENS, possible_ids(before), characters)
    assert len(given) > 3000
    return before, text_tokenizer(changed, lower_case=request.param), given, texts


@pytest.mark.parametrize("use_numba", [True, False], ids=["numba", "numpy"])
def test_the_fast_tokenizer_has_the_ids_of_hugging_face(learned, use_numba: bool) -> None:
    _, after, _, texts = learned
    assert first_difference(FastTokenizer(after, use_numba=use_numba), after, texts) == ""


def test_what_is_learned_is_possible_and_all_else_as_before(learned) -> None:
    before, after, given, _ = learned
    expected = possible_ids(before)
    expected[list(given.values())] = True
    assert np.array_equal(possible_ids(after), expected)


def test_only_unknown_tokens_change_into_learned_ones(learned) -> None:
    before, after, given, texts = learned
    changed = []
    for old, new in zip(
        before.encode_batch(texts, add_special_tokens=False),
        after.encode_batch(texts, add_special_tokens=False),
        strict=True,
    ):
        assert old.offsets == new.offsets
        pairs = zip(old.ids, new.ids, strict=True)
        changed += [(was, index) for was, index in pairs if was != index]
    assert {was for was, _ in changed} == {UNK_TOKEN_ID}
    # Every learned character is in the texts.
    assert {index for _, index in changed} == set(given.values())


def test_a_saved_tokenizer_writes_the_characters_back(tmp_path) -> None:
    from transformers import AutoTokenizer

    from enigma.language_model.word_pieces import join_word_pieces

    tokenizer = text_tokenizer(TOKENS, lower_case=True)
    characters = lacking_characters(tokenizer, counts_of([CORPUS]))
    changed, _ = give_entries(TOKENS, possible_ids(tokenizer), characters)
    make_tokenizer(changed, lower_case=True).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "玄德曰：“汝等𠮷人——何不早来……”孔明笑曰：‘然。’"
    ids = again(text, add_special_tokens=False)["input_ids"]
    assert len(again) == 21128
    assert again.unk_token_id not in ids
    assert join_word_pieces(again, ids) == text
