"""Normalisation: nothing of content is lost, and equal titles have equal keys."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.text.normalisation import normalise

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@given(TEXT)
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(TEXT)
def test_normalising_keeps_every_visible_character(text: str) -> None:
    def visible(value: str) -> str:
        composed = unicodedata.normalize("NFC", value)
        invisible = ("Cc", "Zs", "Zl", "Zp")
        return "".join(
            c for c in composed if unicodedata.category(c) not in invisible and c != "\ufeff"
        )

    assert visible(normalise(text)) == visible(text)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("一\r\n二\r三\u2028四", "一\n二\n三\n四"),
        (
            "第一回\u3000回目\n\n  \n\t滚滚\n\n\n\n\u3000\u3000长江 ",
            "第一回\u3000回目\n\n滚滚\n\n长江",
        ),
        ("\ufeff一\x00二\x1f三\x7f", "一二三"),
        ("a\tb", "a b"),
        ("e\u0301", "é"),
        ("“曹操”…—【】", "“曹操”…—【】"),
    ],
)
def test_normalisation_by_example(raw: str, expected: str) -> None:
    assert normalise(raw) == expected
