"""Templates that carry text keep it; the others print nothing."""

import pytest

from pipelines.data.wiki.templates import FAMILIES, TEMPLATES, template_text

SEEN = {
    "lang|en|text": "text",
    "Lang|en|text": "text",
    "Template:lang|en|text": "text",
    "lang|en|text=text": "text",
    "lang-en|text": "text",
    "lang-zh-hant|文": "文",
    "link-en|显示|Title": "显示",
    "link-en|条目|Title|显示": "显示",
    "le|本地|Foreign": "本地",
    "le|本地|Foreign|显示": "显示",
    "tsl|en|Foreign|本地": "本地",
    "tsl|en|Foreign||显示": "显示",
    "ilh|本地|Foreign|lang-code=en": "本地",
    "interlanguage link|本地|en|Foreign|lt=显示": "显示",
    "convert|10|km": "10 km",
    "convert|10|km|mi|abbr=on": "10 km",
    "convert|10|to|20|km": "10至20 km",
    "convert|2|x|3|x|4|m": "2×3×4 m",
    "cvt|5": "5",
    "ruby|漢|かん": "漢（かん）",
    "ruby|漢": "漢",
    "nowrap|text": "text",
    "nowrap|1=a=b": "a=b",
    " small | text ": "text",
    "color|red|text": "text",
    "zh-tw|文": "文",
    "zh-tw": "",
    "val|12|u=km": "12 km",
    "frac|1|2": "1/2",
    "bd|1900年|1月1日|1980年|2月2日|catIdx=x": "（1900年1月1日－1980年2月2日）",
    "bd|1900年||1980年": "（1900年－1980年）",
    "hlist|a|b||c": "a、b、c",
    "formatnum:1234": "1234",
    "!": "|",
    "lang|en": "",
    "lang-fr|": "",
    "Infobox person|name=曹操": "",
    "cite book|title=三国志": "",
    "#if:x|y": "",
    "": "",
}


@pytest.mark.parametrize("content", SEEN)
def test_the_text_of_a_template(content: str) -> None:
    assert template_text(content.split("|")) == SEEN[content]


@pytest.mark.parametrize("name", [*TEMPLATES, *(f"{start}xx" for start in FAMILIES)])
def test_every_template_of_the_table_prints_an_argument_or_a_sign(name: str) -> None:
    text = template_text([name, "甲", "乙", "丙", "丁", "s=戊"])
    assert set(text) - set("约/ （）－、") or text == " "
