"""The comparison counts what sets of strings count, whatever the database does on disk."""

import random
from collections.abc import Sequence

import pytest

from pipelines.base.errors import UserError
from pipelines.data.audit import comparison as comparison_module
from pipelines.data.audit.comparison import MIN_WINDOWS, Comparison
from pipelines.data.audit.keys import fold_pieces
from pipelines.data.audit.windows import Run
from pipelines.data.overlap import coverage


def runs(texts: Sequence[str]) -> list[Run]:
    """One document and one sequence per text."""
    return [Run(number, (number,), (text,)) for number, text in enumerate(texts)]


def windows(text: str) -> list[str]:
    return [text[at : at + 8] for at in range(len(text) - 7)]


def random_texts(seed: int, count: int, alphabet: str) -> list[str]:
    generator = random.Random(seed)
    lengths = (generator.randrange(60) for _ in range(count))
    return ["".join(generator.choices(alphabet, k=length)) for length in lengths]


@pytest.mark.parametrize("threads", [1, 2])
def test_shares_are_those_of_sets(threads: int) -> None:
    train, test = (random_texts(seed, 60, "甲乙") for seed in (1, 2))
    known = {window for text in train for window in windows(text)}
    wanted = [
        (number, sum(window in known for window in windows(text)) / len(windows(text)))
        for number, text in enumerate(test)
        if len(windows(text)) >= MIN_WINDOWS
    ]
    with Comparison(8, threads=threads) as comparison:
        comparison.hold_out("test", runs(test))
        comparison.add("train", runs(train))
        comparison.measure("train", "test")
        for kind in ("sequence", "document"):
            worst = comparison.worst("test", kind, 100)
            assert sorted((unit.number, unit.share) for unit in worst) == wanted
            shares = comparison.shares("test", kind, 0.9)
            values = sorted((share for _, share in wanted), reverse=True)
            assert (shares.compared, shares.maximum) == (len(values), values[0])
            assert shares.above == sum(value > 0.9 for value in values)
            assert shares.p99 == values[len(values) // 100]
            assert shares.mean == pytest.approx(sum(values) / len(values))


def test_the_judge_and_the_filter_mean_the_same_units() -> None:
    """They share no code, and a unit that one of them leaves out the other must leave out too."""
    assert coverage.MIN_WINDOWS == MIN_WINDOWS


def test_a_sieve_that_lets_everything_pass_changes_nothing(monkeypatch) -> None:
    train, test = (random_texts(seed, 40, "甲乙丙") for seed in (3, 4))
    results = []
    for bits in (29, 4):
        monkeypatch.setattr("pipelines.data.audit.comparison.SIEVE_BITS", bits)
        with Comparison(8) as comparison:
            comparison.hold_out("test", runs(test))
            comparison.add("train", runs(train))
            comparison.measure("train", "test")
            results.append([comparison.worst(split, "document", 99) for split in ("test", "train")])
    assert results[0] == results[1]
    assert results[0][0][0].share > 0


def test_it_names_the_unit_that_gives_most_and_the_longest_text(prose) -> None:
    held = prose(0, 100)
    train = [prose(1, 50), prose(2, 20) + held[:20] + prose(3, 20), prose(4, 9) + held[30:70]]
    with Comparison(8) as comparison:
        comparison.hold_out("test", runs([prose(5, 80), held]))
        comparison.add("train", runs(train))
        comparison.measure("train", "test")
        (worst,) = comparison.worst("test", "document", 1)
        assert (worst.number, worst.windows) == (1, 93)
        assert worst.share == pytest.approx((13 + 33) / 93)
        assert comparison.source("test", "document", 1, "train") == (
            2,
            fold_pieces([held[30:70]])[0],
        )
        assert comparison.source("test", "document", 0, "train") is None
        assert comparison.source("train", "sequence", 1, "test") == (1, fold_pieces([held[:20]])[0])


def test_a_unit_is_judged_from_its_24th_window_on(prose) -> None:
    texts = [prose(0, 30), prose(1, 31)]
    with Comparison(8) as comparison:
        comparison.hold_out("test", runs(texts))
        comparison.add("train", runs(texts))
        comparison.measure("train", "test")
        assert comparison.shares("test", "document", 0.15).compared == 1


def test_a_title_counts_with_an_excerpt_under_it_only(prose) -> None:
    with Comparison(8) as comparison:
        comparison.hold_out("test", runs([prose(0, 50), prose(1, 50)]))
        comparison.add_documents("test", 0, ["a", ""], ["无标题", "張 偉"])
        comparison.add("train", runs([prose(2, 50), prose(0, 50), prose(1, 50)]))
        comparison.add_documents("train", 0, ["", "b", "a"], ["无标题", "別的", "张伟"])
        comparison.measure("train", "test")
        assert comparison.shared_titles("train", "test", 16) == (1, "张伟")
        assert comparison.shared_titles("train", "test", 44) == (0, "")
        assert comparison.shared_ids("train", "test") == (1, "a")
        assert comparison.count_documents("train") == 3
        assert comparison.document_id("train", 1) == "b"


@pytest.mark.parametrize("width", [3, 10])
def test_a_window_that_does_not_fit_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match="expected 4 to 9"):
        Comparison(width)


def test_too_little_memory_is_said_in_words(prose, monkeypatch) -> None:
    monkeypatch.setattr(comparison_module, "MEMORY_MB", 2)
    with (
        pytest.raises(UserError, match=r"to fit into 2 MB, it does not \(") as caught,
        Comparison(8) as comparison,
    ):
        comparison.hold_out("test", runs([prose(at, 9000) for at in range(40)]))
    assert "hold out less text" in caught.value.fix
