"""Templates, links and variants nest; what is not closed, or closes nothing, stays."""

import pytest

from pipelines.data.wiki.brackets import MAX_DEPTH, resolve
from pipelines.data.wiki.variants import SIMPLIFIED, shown


def seen(text: str) -> str:
    return resolve(text, lambda content: shown(content, SIMPLIFIED), lambda *_: None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{nowrap|{{lang|en|{{small|a}}}}}}b", "ab"),
        ("{{lang|zh|-{zh-hans:甲;zh-hant:乙}-}}", "甲"),
        ("-{zh-hans:{{lang|en|A}};zh-hant:[[B|乙]]}-", "A"),
        ("-{zh-hans:甲-{乙}-丙;zh-hant:丁}-", "甲乙丙"),
        ("-{H|zh-cn:-{甲}-;zh-tw:乙}-丙", "丙"),
        ("-{{{lang|en|A}}}-", "A"),
        ("{{lang|en|A}}-{R|乙}--{丙}-{丁}", "A乙丙{丁}"),
        ("甲-{{lang|en|A}}-乙", "甲-A-乙"),
        ("{{lang|en|[[A|B]]}}与[[C|{{small|D}}]]", "B与D"),
        ("{{{1|甲}}}与{{{2}}}", "甲与"),
        ("{{nowrap|{{{1|甲}}}}}", "甲"),
        ("{{{nowrap|甲}}", "{甲"),
        ("[[甲]]与[[乙|丙]]与[[:Category:丁]]与[[戊|己|庚]]", "甲与丙与Category:丁与己|庚"),
        ("[[File:a.jpg|thumb|[[甲]]与{{small|乙}}]]丙", "丙"),
        ("[[分类:人物]][[Category:人物|甲]]乙", "乙"),
        ("{甲}与[乙]与a-{b", "{甲}与[乙]与a-{b"),
    ],
)
def test_what_a_reader_sees(text: str, expected: str) -> None:
    assert seen(text) == expected


@pytest.mark.parametrize("mark", ["{{", "[[", "-{", "{{{", "}}", "]]", "}-", "{{lang|en|", "[[甲|"])
def test_an_odd_mark_deletes_nothing(mark: str) -> None:
    assert seen(f"前文{mark}中文[[乙|丙]]{{{{small|丁}}}}后文") == f"前文{mark}中文丙丁后文"


def test_a_bracket_closed_far_below_is_no_link() -> None:
    text = "前文[[甲\n此段不可删去。\n后文]]"
    assert seen(text) == text
    text = "前文[[File:甲.jpg|图\n\n此段不可删去。]]"
    assert seen(text) == text


def test_crossed_brackets_close_all_the_same() -> None:
    assert seen("{{lang|zh|-{甲}}乙-{丙}-") == "-{甲乙丙"
    assert seen("{{lang|en|[[A}}与[[B]]") == "[[A与B"


def test_what_is_nested_too_deep_prints_nothing() -> None:
    def nested(depth: int) -> str:
        return "{{small|" * depth + "甲" + "}}" * depth

    assert seen(nested(MAX_DEPTH)) == "甲"
    assert seen(f"乙{nested(50_000)}丙") == "乙丙"


def test_every_replacement_is_noted() -> None:
    notes: list[tuple[str, str]] = []
    text = "-{甲}-{{small|[[乙]]}}[[File:a]]"
    resolve(text, lambda content: content, lambda rule, piece: notes.append((rule, piece)))
    assert notes == [
        ("variant", "-{甲}-"),
        ("link", "[[乙]]"),
        ("template", "{{small|[[乙]]}}"),
        ("file", "[[File:a]]"),
    ]
