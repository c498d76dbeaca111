"""Planted documents are odd in the way that their kind says, and the table finds the worst."""

import re

import pytest

from benchmarks.flow.odd_documents import OURS, PARTS, PEERS, table
from benchmarks.flow.planted_documents import KINDS, plant

TEXT = "却说曹操大怒，引兵来战。玄德曰：“不可轻敌。”孔明笑而不答！众将皆退，各守营寨。" * 6
PACKAGED = {"reviews", "English"}  # made of other packages' files, which are optional


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - PACKAGED))
def test_a_planted_document_differs_and_is_the_same_every_time(kind: str) -> None:
    (first,), (again,) = plant(kind, [TEXT], seed=0), plant(kind, [TEXT], seed=0)
    assert first == again != TEXT
    assert 0 < len(first) <= len(TEXT)


def test_ocr_misreads_a_tenth_and_leaves_the_punctuation() -> None:
    [text] = plant("OCR noise", [TEXT], seed=0)
    changed = [(a, b) for a, b in zip(TEXT, text, strict=True) if a != b]
    assert 0.03 < len(changed) / len(TEXT) < 0.15
    assert all(0 < abs(ord(a) - ord(b)) <= 4 for a, b in changed)


def test_shuffled_sentences_are_the_same_sentences() -> None:
    [text] = plant("sentences shuffled", [TEXT], seed=0)
    assert sorted(text) == sorted(TEXT)
    assert "各守营寨。" in text
    [cut] = plant("sentences shuffled", ["大喜。一。二。三。四。五。玄德曰"], seed=0)
    assert cut != "大喜。一。二。三。四。五。玄德曰"
    assert (cut[:3], cut[-3:]) == ("大喜。", "玄德曰"), "where a text is cut says nothing"
    assert plant("sentences shuffled", ["", "曹", "曹操，大喜"], 0) == ["", "曹", "曹操，大喜"]


def test_every_second_clause_is_traditional() -> None:
    [text] = plant("scripts mixed", ["却说，" * 10], seed=0)
    assert sorted(re.findall("却说|卻說", text)) == ["却说"] * 5 + ["卻說"] * 5


def test_the_table_finds_the_worst_kind_and_a_better_peer() -> None:
    good = dict.fromkeys((OURS, *PARTS), 1.0) | dict.fromkeys(PEERS, 0.9)
    rows = {row["name"]: row for row in table({"easy": good, "hard": good | {OURS: 0.84}})}
    assert rows["worst kind, hard: AUROC"]["met"] is False
    means = [row for row in table({"easy": good | {"ECOD": 1.0}}) if row["name"] == "mean AUROC"]
    assert {row["peer"]: row["met"] for row in means} == dict.fromkeys(PEERS, True) | {
        "ECOD": False
    }
