"""Sentences are cut where they end, and no other order keeps two of them together."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipelines.flow.documents.sentence_order import MIN_SENTENCES, SentenceEnds

TOKENS = ("[UNK]", "。", "！", "”", "』", "曹", "操", "大", "喜")
ENDS = SentenceEnds.of_tokens(TOKENS)


def cut(text: str) -> list[str]:
    ids = [TOKENS.index(character) for character in text]
    return ["".join(TOKENS[token] for token in sentence) for sentence in ENDS.sentences(ids)]


def test_a_sentence_keeps_its_marks() -> None:
    assert cut("曹操大喜。”操！！喜』曹") == ["曹操大喜。”", "操！！", "喜』曹"]
    assert cut("曹大喜。』”操。”！曹") == ["曹大喜。』”", "操。”！", "曹"]
    assert cut("。”曹。") == ["。”", "曹。"]
    assert cut("大喜") == ["大喜"]


def test_marks_that_the_vocabulary_lacks_end_nothing() -> None:
    assert SentenceEnds.of_tokens(TOKENS) == SentenceEnds([1, 2], [3, 4])
    assert SentenceEnds.of_tokens(["a", "b"]).other_orders([0, 1] * 20) == []


@given(st.lists(st.integers(0, 8), max_size=60))
def test_nothing_is_lost_or_changed(ids: list[int]) -> None:
    found = ENDS.sentences(ids)
    assert [token for sentence in found for token in sentence] == ids
    orders = ENDS.other_orders(ids)
    assert len(orders) == (0 if len(found) < MIN_SENTENCES + 2 else 2)
    for order in orders:
        assert sorted(order) == sorted(ids)
        assert order[: len(found[0])] == found[0]
        assert order[-len(found[-1]) :] == found[-1], "it may end within a sentence"
    assert ENDS.other_orders(ids) == orders, "a score is the same every time"


@given(st.integers(MIN_SENTENCES + 2, 30))
def test_no_sentence_follows_its_own_predecessor(number: int) -> None:
    """Of sentences whose first token is their number."""
    ids = [token for sentence in range(number) for token in (100 + sentence, 1)]
    for order in ENDS.other_orders(ids):
        assert sorted(order) == sorted(ids)
        names = order[::2]
        assert all(after != before + 1 for before, after in pairwise(names))
