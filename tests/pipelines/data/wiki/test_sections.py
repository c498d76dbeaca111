"""Reference sections go; what follows them, and what only looks like one, stays."""

import pytest

from pipelines.data.wiki.sections import reference_sections
from pipelines.data.wiki.spans import cut

LEAD = "甲地是一处地名，位于山下。其名始见于古书，今已不存。\n\n"
HISTORY = "此地自古就有人居住，后来成了一座城。\n"


def left(text: str) -> str:
    return cut(text, reference_sections(text), lambda _: None)


@pytest.mark.parametrize(
    ("section", "after"),
    [
        ("== 参见 ==\n乙地\n\n", f"== 历史 ==\n{HISTORY}"),
        ("==參見==\n* 乙地\n* 丙地\n=== 下级 ===\n丁地\n", f"== 历史 ==\n{HISTORY}"),
        ("=== 注释 ===\n某注，见于书中。\n", f"=== 历史 ===\n{HISTORY}"),
        ("=== 脚注 ===\n某注。\n", f"== 历史 ==\n{HISTORY}"),
        ("== 注释与参考文献 ==\n* 某书\n", f"== 历史 ==\n{HISTORY}"),
        ("== 参考文献 ==\n* 三国志\n* 后汉书", ""),
        ("== 参考文献 ==\n* 三国志\n", HISTORY),
        ("参考文献\n\n三国志\n\n后汉书", ""),
        ("外部连结\n\n官方网站\n\nhttp://example.com", ""),
        (
            "參考文献\n\n陈寿. 三国志. 北京: 中华书局出版社, 1999. ISBN 7-101-00000-0。\n",
            f"\n历史\n\n{HISTORY}",
        ),
        ("延伸阅读\n《乙书》\n《丙书》\n", f"1949年以后\n{HISTORY}"),
    ],
)
def test_only_the_section_goes(section: str, after: str) -> None:
    kept = left(f"{LEAD}{section}{after}")
    assert kept.replace("\n", "") == f"{LEAD}{after}".replace("\n", "")


@pytest.mark.parametrize(
    "heading", ["注释", "註釋", "注解", "脚注", "参见", "參看", "参考", "外部链接", "参考文献"]
)
@pytest.mark.parametrize(
    "rest",
    [
        # No wiki page: a poem with notes and a translation.
        "某字：某义。\n译文\n明亮的月光洒在床前。\n",
        # Marks were stripped: nothing says where the section ends.
        f"乙地\n\n历史\n{HISTORY}",
        f"乙地\n丙地\n历史\n古代\n{HISTORY}",
        HISTORY,
        "该市以农业为主，工业不发达\n",
    ],
)  # fmt: skip
def test_a_bare_line_before_text_is_no_heading(heading: str, rest: str) -> None:
    text = f"{LEAD}{heading}\n{rest}"
    assert left(text) == text


@pytest.mark.parametrize("heading", ["注释", "注解", "脚注"])
def test_notes_without_sentences_stay(heading: str) -> None:
    text = f"{LEAD}{heading}\n床：井栏\n译文\n明亮的月光洒在床前"
    assert left(text) == text


def test_a_text_without_sentences_gives_no_contrast() -> None:
    text = "床前明月光\n疑是地上霜\n参考\n举头望明月\n低头思故乡"
    assert left(text) == text


def test_a_long_end_stays() -> None:
    text = f"{LEAD * 200}参见\n" + "乙地条目\n" * 600
    assert left(text) == text


@pytest.mark.parametrize("line", ["他参考了外部链接", "参见乙地", "注释甚多", "参见 乙"])
def test_other_lines_are_no_headings(line: str) -> None:
    text = f"{LEAD}{line}\n乙地"
    assert left(text) == text


def test_two_sections_go_one_by_one() -> None:
    text = f"{LEAD}== 参见 ==\n乙\n== 历史 ==\n{HISTORY}== 注释 ==\n丙\n== 地理 ==\n{HISTORY}"
    assert left(text) == f"{LEAD}== 历史 ==\n{HISTORY}== 地理 ==\n{HISTORY}"


def test_a_heading_below_text_still_ends_at_the_next_one() -> None:
    prose = "没有标题的正文，" * 5
    text = f"{LEAD}== 参见 ==\n乙\n{prose}\n=== 注释 ===\n丙\n=== 历史 ===\n丁"
    assert left(text) == f"{LEAD}{prose}\n=== 历史 ===\n丁"
