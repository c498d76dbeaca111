"""No page takes more than linear time, and none raises, whatever its markup is like."""

import random

import pytest

from benchmarks.data.worst_case import KINDS, MAX_RATIO, WHAT, best_s, page

TIMES = 1_000
# Below this, a clock's ticks and other programs count for more than the page.
NOISE_S = 0.02
MARKS = (
    *("{{", "}}", "{", "}", "[[", "]]", "[", "]", "-{", "}-", "{{{", "|", "{|", "|}", "\n", "\n\n"),
    *(
        "<ref>",
        "</ref>",
        "<ref/>",
        "<!--",
        "-->",
        "<math>",
        "</math>",
        "{\\displaystyle ",
        "&nbsp;",
    ),
    *(
        "zh-hans:",
        "zh-hant:",
        ";",
        "=>",
        "H|",
        "lang|en|",
        "nowrap|",
        "convert|1|km",
        "File:a|",
        "1=",
    ),
    *(
        "\n== 参见 ==\n",
        "\n注释\n",
        "分类:",
        "==",
        "__TOC__",
        "''",
        "（",
        "）",
        "「",
        "」",
        "，",
        "。",
        "甲",
    ),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", WHAT)
def test_four_times_the_markup_takes_about_four_times_as_long(what: str, kind: str) -> None:
    small_s = large_s = float("inf")
    # Another program slows a run down and never speeds it up, so more runs come nearer the truth.
    for _ in range(5):
        small_s = min(small_s, best_s(WHAT[what], page(kind, TIMES)))
        large_s = min(large_s, best_s(WHAT[what], page(kind, 4 * TIMES)))
        if large_s <= MAX_RATIO * small_s + NOISE_S:
            return
    pytest.fail(f"{1e3 * small_s:.1f} ms, and for four times as much {1e3 * large_s:.1f} ms")


@pytest.mark.parametrize("what", WHAT)
def test_random_markup_raises_nothing_and_never_grows(what: str) -> None:
    generator = random.Random(0)
    for _ in range(2_000):
        text = "".join(generator.choices(MARKS, k=generator.randrange(60)))
        assert len(WHAT[what](text)) <= 4 * len(text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", WHAT)
def test_the_text_before_the_markup_is_kept(what: str, kind: str) -> None:
    assert "此页有正文。" in WHAT[what](page(kind, 50))
