"""The cloze has one true answer an item, and cannot be made of nothing."""

import pytest

from benchmarks.language_model import cloze
from pipelines.base.errors import UserError

CLAUSES = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳"


def document(number: int) -> str:
    """Twenty clauses of seven characters that stand in no other document."""
    clause = "".join(chr(0x4E00 + 100 * number + i) for i in range(5))
    return "".join(f"{clause}{CLAUSES[i % len(CLAUSES)]}。" for i in range(20))


def test_the_true_clause_goes_on_with_the_context() -> None:
    documents = [document(number) for number in range(6)]
    found = cloze.items(documents)
    assert found
    for item in found:
        source = next(text for text in documents if item["context"] in text)
        assert len(set(item["choices"])) == cloze.CHOICES
        assert item["context"] + item["choices"][item["label"]] in source
        wrong = [c for i, c in enumerate(item["choices"]) if i != item["label"]]
        assert not any(clause in source for clause in wrong)
        assert len({len(clause) for clause in item["choices"]}) == 1, "no hint by length"


def test_labels_are_spread_and_the_seed_decides() -> None:
    documents = [document(number) for number in range(12)]
    found = cloze.items(documents)
    assert {item["label"] for item in found} == {0, 1, 2, 3}
    assert found == cloze.items(documents)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(UserError, match="found none in 2 documents"):
        cloze.items(["短。", document(0)])
