"""What prints nothing is found, and what is left open deletes nothing."""

import pytest

from pipelines.data.wiki.spans import (
    comments,
    cut,
    latex,
    tables,
    tag_pairs,
    tag_pattern,
    without_empty_brackets,
)

REFS = tag_pairs(tag_pattern(("ref",)))


@pytest.mark.parametrize(
    ("find", "text", "expected"),
    [
        (comments, "甲<!-- 注 -->乙<!---->丙", "甲乙丙"),
        (comments, "甲<!--乙<!--丙-->丁<!--戊", "甲丁戊"),
        (REFS, '甲<ref name="a">书</ref>乙<ref name="a" />丙<REF>书</REF >丁', "甲乙丙丁"),
        (REFS, "甲<ref>乙。丙<ref>书</ref>丁", "甲<ref>乙。丙丁"),
        (REFS, "甲</ref>乙<ref>丙", "甲</ref>乙<ref>丙"),
        (REFS, "甲<references/>乙", "甲<references/>乙"),
        (REFS, "甲<ref>书<ref>书</ref></ref>乙", "甲乙"),
        (tables, "甲\n{| class=x\n| 乙\n{|\n| 丙\n|}\n|}\n丁", "甲\n\n丁"),
        (tables, "甲\n{|\n乙。\n{|\n丙\n|}\n丁", "甲\n{|\n乙。\n\n丁"),
        (tables, "甲\n|}\n乙 {| 丙\n|}}\n", "甲\n|}\n乙 {| 丙\n|}}\n"),
        (latex, r"甲{\displaystyle {\frac {a}{b}}}乙{c}丙", "甲乙{c}丙"),
        (latex, r"甲{\displaystyle {\displaystyle a}乙", r"甲{\displaystyle 乙"),
    ],
)
def test_what_is_closed_goes(find, text: str, expected: str) -> None:
    assert cut(text, find(text), lambda _: None) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("甲（，；）乙《 》丙「」", "甲乙丙"),
        ("甲（（）（，）、）乙", "甲乙"),
        ("甲（「《》」）乙", "甲乙"),
        ("甲（（），丙）乙", "甲（，丙）乙"),
        ("甲「，（）」乙", "甲「，」乙"),
        ("甲（（）乙", "甲（乙"),
        ("甲（（））》乙）", "甲》乙）"),
        ("「（（））丙」", "「丙」"),
    ],
)
def test_empty_brackets_go_with_those_around_them(text: str, expected: str) -> None:
    assert without_empty_brackets(text, lambda _: None) == expected


def test_every_piece_is_noted_once() -> None:
    notes: list[str] = []
    without_empty_brackets("甲（「」，）乙（）", notes.append)
    assert notes == ["「」", "（）", "（，）"]
