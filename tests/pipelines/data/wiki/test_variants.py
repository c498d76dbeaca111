"""`-{...}-` shows what MediaWiki's reader of the wanted script sees."""

import pytest

from pipelines.data.wiki.variants import SIMPLIFIED, TRADITIONAL, chooser, shown, undecided

# Content, what a reader of simplified and of traditional script sees.
SEEN = {
    "no rules": ("云", "云", "云"),
    "both scripts": ("zh-hans:计算机; zh-hant:電腦", "计算机", "電腦"),
    "regions, by fallback": ("zh-cn:博客; zh-tw:部落格;", "博客", "部落格"),
    "nearest region first": ("zh-hk:網誌;zh-sg:部落;zh-tw:部落格", "部落", "部落格"),
    "the other script only": ("zh-tw:電腦;zh-hk:電腦", "電腦", "電腦"),
    "the script outranks its regions": ("zh-cn:甲;zh-hans:乙;zh-tw:丙;zh-hant:丁", "乙", "丁"),
    "a form left empty": ("zh-hans:;zh-hant:的", "", "的"),
    "upper case and spaces": (" ZH-Hans : 甲 ; ZH-Hant : 乙 ", "甲", "乙"),
    "a semicolon and a colon in the text": ("zh-cn:甲&nbsp;乙:丙;zh-tw:丁", "甲&nbsp;乙:丙", "丁"),
    "no language": ("方:圆;甲:乙", "方:圆;甲:乙", "方:圆;甲:乙"),
    "A adds a rule and shows it": ("A|zh-cn:博客; zh-tw:部落格", "博客", "部落格"),
    "S shows": ("S|zh-cn:甲;zh-tw:乙", "甲", "乙"),
    "T and A shows": ("T;A|zh-cn:甲;zh-tw:乙", "甲", "乙"),
    "one way": ("A|电脑=>zh-cn:计算机;电脑=>zh-tw:電腦", "计算机", "電腦"),
    "H hides": ("H|zh-cn:博客; zh-tw:部落格;", "", ""),
    "H outranks A": ("A;H|zh-cn:博客; zh-tw:部落格;", "", ""),
    "H with spaces": (" H | zh-cn:博客; zh-tw:部落格", "", ""),
    "T is the title": ("T|zh-hans:互联网; zh-hant:網際網路", "", ""),
    "- removes a rule": ("-|zh-cn:删;zh-tw:刪", "", ""),
    "R is raw": ("R|zh-cn:甲;zh-tw:乙", "zh-cn:甲;zh-tw:乙", "zh-cn:甲;zh-tw:乙"),
    "N names": ("N|zh-tw", "臺灣正體", "臺灣正體"),
    "N of nothing": ("N|甲", "", ""),
    "D describes": ("D|zh-sg:甲;zh:乙", "新加坡简体：甲；不转换：乙", "新加坡简体：甲；不转换：乙"),
    "variants as flags": ("zh-hans;zh-hant|文字", "文字", "文字"),
    "empty": ("", "", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_each_reader_sees_one_form(name: str) -> None:
    content, simplified, traditional = SEEN[name]
    assert shown(content, SIMPLIFIED) == simplified
    assert shown(content, TRADITIONAL) == traditional


@pytest.mark.parametrize("name", SEEN)
def test_the_raw_text_keeps_the_markup_only_where_readers_differ(name: str) -> None:
    content, simplified, traditional = SEEN[name]
    kept = undecided(content)
    if simplified != traditional:
        assert kept == f"-{{{content}}}-"
    elif kept != f"-{{{content}}}-":
        assert kept == simplified


@pytest.mark.parametrize(
    ("around", "script", "expected"),
    [
        ("这个词在大陆", "as_is", "计算机"),
        ("這個詞在臺灣說", "as_is", "電腦"),
        ("〇〇", "as_is", "计算机"),
        ("這個詞在臺灣說", "simplified", "计算机"),
        # What stands in the markup says nothing about the text.
        ("这是-{H|zh-tw:國會來們為說;zh-hk:國會來們為說}-", "as_is", "计算机"),
    ],
)
def test_the_profile_or_else_the_text_chooses(around: str, script, expected: str) -> None:
    assert chooser(around, script)("zh-hans:计算机;zh-hant:電腦") == expected
