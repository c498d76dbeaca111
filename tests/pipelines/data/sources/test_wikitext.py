"""Wikitext becomes plain text, and keeps the words that a reader of the page sees."""

import pytest

from pipelines.data.cleaning.leftovers import Removed, remove_leftovers
from pipelines.data.sources.wikitext import plain_text


def test_wikitext_that_is_broken_gives_words_all_the_same() -> None:
    assert "曹操" in plain_text("{{未閉 [[曹操 '''x\n{| 表")
    assert plain_text("") == ""


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("{{Infobox person\n| name = 曹\n| image = [[File:a|{{lang|zh|像}}]]\n}}\n曹操", "曹操"),
        ("'''曹操'''（{{lang-en|Cao Cao}}；155年{{efn|注}}）", "曹操（Cao Cao；155年）"),
        ("曹操（{{lang-ko|}}；{{未知|a}}）起兵", "曹操起兵"),
        ("{{convert|10|km|mi}}{{link-en|詩人|Poet}}{{ruby|漢|かん}}", "10 km詩人漢（かん）"),
        ("<ruby>漢<rt>'''かん'''</rt>字<rt lang=ja>[[音|じ]]</rt></ruby>", "漢（かん）字（じ）"),
        ("<ruby><rb>漢字</rb><rp>(</rp><rt>かんじ</rt><rp>)</rp></ruby>", "漢字(かんじ)"),
        ("<ruby>漢<rt>かん<rt></ruby>字<rt/>", "漢（かん）字"),
        ("甲<ref>[[书]]</ref>乙<ref name=a/>丙<!-- [[注]] -->", "甲乙丙"),
        ("甲<ref>乙。\n\n丙<ref>书</ref>丁", "甲乙。\n\n丙丁"),
        ("* 甲\n** [//a.com 乙]\n# http://a.com\n; 丙\n: 丁\n----\n戊", "甲\n乙\nhttp://a.com\n丙\n丁\n\n戊"),
        ("甲<br/>乙<small>丙</small>H<sub>2</sub>O<source>x</source>", "甲乙丙H2O"),
        ("若a <b 且 b> c，&lt;b&gt;&nbsp;", "若a <b 且 b> c，<b>"),
        ("<nowiki>[[甲]]{{lang|en|x}}</nowiki>乙", "[[甲]]{{lang|en|x}}乙"),
        ("酸（<chem>HNO3</chem>）與<math>n</math><math>\\pi</math>", "酸（HNO3）與n"),
        ("甲\n{| class=x\n|-\n| 乙 || [[丙]]\n|}\n丁\n\n\n\n戊", "甲\n\n丁\n\n戊"),
        ("甲\n== 参见 ==\n* [[乙]]\n== 歷史 ==\n丙\n== 参考文献 ==\n{{reflist}}\n", "甲\n歷史\n丙"),
        ("__NOTOC__甲\n[[Category:三国]] [[分类:人物|曹]]\n", "甲"),
    ],
)  # fmt: skip
def test_what_a_reader_sees(wikitext: str, expected: str) -> None:
    assert plain_text(wikitext) == expected


@pytest.mark.parametrize(
    ("script", "expected"), [("as_is", "這個電腦說明"), ("simplified", "這個计算机說明")]
)
def test_the_profile_chooses_the_variant_of_a_dump(script, expected: str) -> None:
    raw = plain_text(
        "-{H|zh-cn:博客;zh-tw:部落格}-這個{{lang|zh|-{zh-hans:计算机;zh-hant:電腦}-}}-{R|說}-明"
    )
    assert raw == "這個-{zh-hans:计算机;zh-hant:電腦}-說明"
    assert remove_leftovers("d1", raw, script, Removed()) == expected
