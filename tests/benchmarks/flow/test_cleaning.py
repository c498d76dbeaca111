"""What is removed from a polluted training set, and what the table says of it."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.flow import cleaning
from benchmarks.flow.cleaning_table import LOSS, OURS, PRIORS, RANDOM, WAYS, table
from pipelines.data.text.shard_vocabulary import ShardVocabulary
from pipelines.flow.documents.passages import Floats

TEXT = "却说曹操大怒，引兵来战。玄德曰：“不可轻敌。”孔明笑而不答！众将皆退，各守营寨。" * 6


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the kinds that other packages' files are made into."""
    kinds = {k: v for k, v in cleaning.KINDS.items() if k not in {"reviews", "English"}}
    monkeypatch.setattr(cleaning, "KINDS", kinds)


@pytest.mark.usefixtures("without_packages")
def test_a_tenth_is_polluted_and_the_same_tenth_every_time() -> None:
    texts = [f"{number}。{TEXT}" for number in range(90)]
    polluted, planted = cleaning.pollute(texts, seed=1)
    assert len(planted) == 9
    assert [i for i in range(90) if polluted[i] != texts[i]] == planted
    assert cleaning.pollute(texts, seed=1) == (polluted, planted)
    assert cleaning.pollute(texts, seed=2)[1] != planted


def test_a_score_removes_its_worst_tenth() -> None:
    scores: Floats = np.arange(40.0) % 17
    found = cleaning.removals({OURS: scores}, planted=[3, 4, 5, 6], seed=0)
    assert sorted(found[OURS]) == [15, 16, 32, 33]
    assert len(set(found[RANDOM])) == 4


def test_every_document_is_scored_by_the_half_that_it_is_not_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trained_on(texts: dict[str, list[str]], *_: object) -> list[str]:
        return texts["train"]

    def copies(_: object, seen: list[str], texts: list[str], __: object) -> dict[str, Floats]:
        seen_before = np.array([float(text in seen) for text in texts])
        return dict.fromkeys((OURS, LOSS, PRIORS), seen_before + np.array([int(t) for t in texts]))

    monkeypatch.setattr(cleaning, "write_shards", trained_on)
    monkeypatch.setattr(cleaning, "train", lambda *_: None)
    monkeypatch.setattr(cleaning, "score", copies)
    texts = {"train": [str(number) for number in range(9)]}
    found = cleaning.cross_scores(texts, cleaning.load_params().profile, seed=0)
    expected = [float(number) for number in range(9)]
    assert found == {OURS: expected, LOSS: expected, PRIORS: expected}


def test_token_priors_find_the_rare_and_the_monotonous(tmp_path: Path) -> None:
    counts_V = np.array([0, 1000, 900, 800, 1])
    tokens = tuple("abcde")
    ShardVocabulary(tokens, np.ones(5, np.bool_), counts_V).write(tmp_path)
    generator = np.random.default_rng(0)
    ids = generator.integers(1, 4, (30, 40)).tolist()
    ids[7], ids[9] = [4] * 40, [3] * 40
    assert set(np.argsort(-cleaning.token_priors(tmp_path, ids))[:2]) == {7, 9}


def test_the_table_says_what_was_missed() -> None:
    bits = dict.fromkeys(WAYS, 6.0) | {RANDOM: 7.0, LOSS: 6.5, OURS: 6.2, PRIORS: 6.1}
    runs = [
        {"way": w, "seed": 0, "bits_per_character": b, "planted_removed": 0.5, "sequences": 9}
        for w, b in bits.items()
    ]
    met = {row["name"]: row["met"] for row in table(runs) if row["met"] is not None}
    assert met == {
        f"{OURS} against {RANDOM}": True,
        f"{OURS} against {LOSS}": True,
        f"{OURS} against {PRIORS}": False,
    }
    runs[WAYS.index(OURS)]["bits_per_character"] = 6.9
    assert {row["name"]: row["met"] for row in table(runs)}[f"{OURS} against {RANDOM}"] is False
