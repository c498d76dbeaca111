"""The comparison key is the same for every form of one text, and different for different texts."""

import unicodedata
from unittest import mock

import numpy as np
import opencc
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.audit.keys import fold_pieces
from pipelines.data.text import folding
from pipelines.data.text.folding import (
    CLOSING,
    MARK_CHARACTERS,
    OPENING,
    document_keys,
    fold,
    fold_array,
    fold_points,
    title_key,
    title_keys,
)

TEXT = "北京大学的图书馆，藏书“八百万”册；里面有很多善本，跟着老师去看看。Open 24 hours！"
KEY = "北京大学的图书馆藏书八百万册里面有很多善本跟着老师去看看open24hours"


@pytest.mark.parametrize(
    "copy",
    [
        TEXT,
        *(opencc.OpenCC(f"s2{variant}").convert(TEXT) for variant in ("t", "tw", "hk")),
        unicodedata.normalize("NFKC", TEXT),
        "".join(character for character in TEXT if character.isalnum()),
        TEXT.replace("，", "[1]，").replace("册", "册［註 12］"),
        TEXT.replace("北京大学", "北京大学（拼音：Běijīng Dàxué）"),
        TEXT.replace("图书馆", "图书馆(としょかん)"),
        TEXT.replace("Open 24 hours", "ＯＰＥＮ\u3000２４ ｈｏｕｒｓ"),
        "\n".join(TEXT),
    ],
    ids=["same", "t", "tw", "hk", "width", "bare", "notes", "reading", "kana", "full", "lines"],
)
def test_a_copy_in_another_form_has_the_same_key(copy: str) -> None:
    assert fold(copy) == KEY


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("他说（我们明天一起去北京）了", "他说我们明天一起去北京了"),  # content, not a mark
        (f"甲({'x' * MARK_CHARACTERS})乙", "甲乙"),
        (f"甲({'x' * (MARK_CHARACTERS + 1)})乙", f"甲{'x' * (MARK_CHARACTERS + 1)}乙"),
        (
            "甲（今乙）（乙、丙）",
            "甲今乙乙丙",
        ),  # text in brackets
        ("甲（今乙1）（乙 e）丙", "甲丙"),
        ("甲（乙", "甲乙"),
        ("甲）乙（丙", "甲乙丙"),
        ("㎞ﬁ㈱", "kmfi株"),
        ("。！", ""),
        ("", ""),
    ],
)
def test_rules_by_example(text: str, key: str) -> None:
    assert fold(text) == key


@pytest.mark.parametrize(("opening", "closing"), list(zip(OPENING, CLOSING, strict=True)))
@pytest.mark.parametrize("reading", ["としょかん", "túshūguǎn", "12", "註 12"])
def test_a_reading_in_brackets_of_any_form_has_no_key(opening, closing, reading) -> None:
    copy = TEXT.replace("图书馆", f"图书馆{opening}{reading}{closing}")
    assert fold(copy) == KEY
    assert fold_array(pa.array([copy])).to_pylist() == [KEY]
    assert "".join(fold_pieces([copy])) == KEY


def test_every_form_of_a_bracket_is_one() -> None:
    plain = {point: unicodedata.normalize("NFKC", chr(point)) for point in range(0x10000)}
    for forms in (OPENING, CLOSING):
        assert {chr(point) for point, form in plain.items() if form in set(forms)} == set(forms)


def test_brackets_are_pairs_and_not_those_of_titles_and_quotations() -> None:
    assert [unicodedata.category(mark) for mark in OPENING] == ["Ps"] * len(OPENING)
    assert [unicodedata.category(mark) for mark in CLOSING] == ["Pe"] * len(CLOSING)
    text = "他读《红楼梦》、〈Time〉，说「はい」"
    assert fold(text) == "他读红楼梦time说はい"


def test_a_mark_does_not_reach_into_the_next_text() -> None:
    texts = ["甲（一", "二）乙"]
    assert fold_array(pa.array(texts)).to_pylist() == [fold(text) for text in texts]


def test_titles_keep_what_stands_in_brackets() -> None:
    assert title_key(" ＮＧＣ\u3000６２３１ ") == title_key("ngc 6231") == "ngc6231"
    assert title_key("周恩來") == title_key("周恩来")
    assert title_key("张伟 (演员)") != title_key("张伟 (歌手)")


@given(st.lists(st.text(st.sampled_from("学學ab Ａ１，。" + OPENING + CLOSING + "\ue000𠮷"))))
def test_many_texts_have_the_keys_of_each(texts: list[str]) -> None:
    array = pa.array(["before", *texts], pa.string())[1:]
    keys, plain = (fold_array(array, use_numba=flag).to_pylist() for flag in (True, False))
    assert keys == plain == [fold(text) for text in texts]
    assert all(fold(key) == key for key in keys)


@given(st.text())
def test_a_key_is_its_own_key_and_names_its_sources(text: str) -> None:
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    folded = fold_points(points, np.array([0, len(points)]))
    key = folded.points_F.tobytes().decode("utf-32-le")
    assert fold(key) == key
    assert all(
        character in fold(text[source])
        for source, character in zip(folded.sources_F.tolist(), key, strict=True)
    )
    assert (np.diff(folded.sources_F) >= 0).all()


def test_an_array_in_the_middle_of_another_is_folded() -> None:
    texts = pa.array(["学", "學", "Ａ", "（1）書"])
    assert fold_array(texts.slice(1, 3)).to_pylist() == ["学", "a", "书"]


@pytest.mark.parametrize("use_numba", [True, False])
def test_the_number_of_blocks_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, use_numba: bool
) -> None:
    monkeypatch.setattr(folding, "BYTES_PER_BLOCK", 8)
    texts = ["", "學（1", "）", "", "ﷺ" * 9, "甲[2]乙" * 9, "𠮷", ""]
    keys = fold_array(pa.array(texts), use_numba=use_numba).to_pylist()
    assert keys == [fold(text) for text in texts]


def test_a_text_of_marks_and_little_else_does_not_equal_every_other_one() -> None:
    texts = ["（甲）（乙）", "（丙）（丁）", "……", "。。", TEXT]
    assert document_keys(pa.array(texts)).to_pylist() == ["甲乙", "丙丁", "……", "。。", KEY]
    assert document_keys(pa.array([], pa.string())).to_pylist() == []


@given(titles=st.lists(st.text(st.sampled_from("国國 (甲)ﬁ１\n"), max_size=6), max_size=9))
def test_many_titles_have_the_keys_of_each(titles: list[str]) -> None:
    with mock.patch.object(folding, "TITLES_PER_BLOCK", 2):
        assert title_keys(titles) == list(map(title_key, titles))
