"""Windows are those that a loop over a text finds, and packing loses nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.audit import windows as module
from pipelines.data.audit.windows import NO_SEQUENCE, Run, window_batches, window_text

Row = tuple[int, int, str]


def by_hand(runs: list[Run], width: int) -> list[Row]:
    rows = []
    for run in runs:
        han = [
            (number, character)
            for number, piece in zip(run.sequences, run.pieces, strict=True)
            for character in piece
            if character in "甲乙"
        ]
        for at in range(len(han) - width + 1):
            owners, characters = zip(*han[at : at + width], strict=True)
            owner = owners[0] if len(set(owners)) == 1 else NO_SEQUENCE
            rows.append((owner, run.document, "".join(characters)))
    return rows


def found(runs: list[Run], width: int) -> tuple[list[Row], list[int]]:
    rows, places = [], []
    for batch in window_batches(runs, width):
        for sequence, document, place, *packed in zip(*batch.to_pydict().values(), strict=True):
            rows.append((sequence, document, window_text([tuple(packed)])))
            places.append(place)
    return rows, places


@st.composite
def some_runs(draw: st.DrawFn) -> list[Run]:
    pieces = st.lists(st.text(st.sampled_from("甲乙アab1"), max_size=12), max_size=4)
    runs, sequence = [], 0
    for document, texts in enumerate(draw(st.lists(pieces, max_size=5))):
        runs.append(Run(document, tuple(range(sequence, sequence + len(texts))), tuple(texts)))
        sequence += max(len(texts) - 1, 0)
    return runs


@given(some_runs(), st.sampled_from([4, 5, 8, 9]))
def test_the_windows_are_those_of_a_loop(runs: list[Run], width: int) -> None:
    rows, places = found(runs, width)
    assert rows == by_hand(runs, width)
    assert places == sorted(set(places))


@given(some_runs())
def test_batches_do_not_change_the_windows(runs: list[Run]) -> None:
    whole = found(runs, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHARACTERS_PER_BATCH", 5)
        assert found(runs, 8) == whole


def test_consecutive_windows_spell_their_text() -> None:
    text = "一二三四五六七八九十百𠮷"
    (batch,) = window_batches([Run(0, (0,), (text,))], 8)
    packed = zip(*(batch[name].to_pylist() for name in module.COLUMNS), strict=True)
    assert window_text(packed) == text
    assert batch["place"].to_pylist() == [0, 1, 2, 3, 4]


def test_no_text_has_no_window() -> None:
    assert [batch.num_rows for batch in window_batches([], 8)] == [0]
    assert [batch.num_rows for batch in window_batches([Run(0, (), ())], 8)] == [0]
