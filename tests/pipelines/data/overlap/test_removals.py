"""Removed sequences are spelled as text, with the longest part that is shared."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from enigma.language_model.word_pieces import join_word_pieces
from pipelines.data.overlap.removals import _longest, _Tokens
from pipelines.data.overlap.windows import Windows
from pipelines.data.text.vocabulary import VOCABULARY_SIZE, load_tokenizer, vocabulary_tokens

VOCABULARY = "bert-base-chinese"
TOKENIZER = load_tokenizer(VOCABULARY)
TOKENS = _Tokens(vocabulary_tokens(VOCABULARY))
LATIN = TOKENIZER.convert_tokens_to_ids(
    ["the", "##s", "1", "##", "a", "[UNK]", "[SEP]", "国", "##国"]
)


@given(st.lists(st.sampled_from(LATIN) | st.integers(0, VOCABULARY_SIZE - 1), max_size=40))
def test_tokens_are_spelled_as_the_tokenizer_spells_them(ids: list[int]) -> None:
    assert join_word_pieces(TOKENS, ids) == join_word_pieces(TOKENIZER, ids)


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_the_longest_run_of_shared_windows_is_the_example(is_shared: list[bool]) -> None:
    numbers = np.arange(len(is_shared))
    windows = Windows(numbers.astype(np.uint64), numbers * 0, numbers, numbers, numbers + 7)
    first, last = _longest(windows, np.flatnonzero(is_shared))
    runs = "".join("x" if shared else " " for shared in is_shared).split()
    longest = max(map(len, runs), default=0)
    assert last - first == (longest + 7 if longest else 0)
    assert all(is_shared[first : first + longest])
