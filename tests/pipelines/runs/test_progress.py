"""Which records are shown while a model trains, on a terminal and in a log."""

import io
import logging
import sys

import pytest
from transformers import TrainerState

from pipelines.runs import progress
from pipelines.runs.progress import Progress, describe

STATE = TrainerState(global_step=5, max_steps=1000)
EVALUATION = {
    "step": 8.0,
    "validation_loss_nats": 7.0,
    "validation_perplexity": 1096.63,
    "validation_bits_per_character": 10.0994,
}


def training_record(step: int) -> dict[str, float]:
    return {"step": step, "train_loss_nats": 2.0 + step}


def shown(records: list[dict[str, float]], caplog: pytest.LogCaptureFixture) -> list[str]:
    callback = Progress()
    with caplog.at_level(logging.INFO, logger=progress.__name__):
        callback.on_train_begin(None, STATE, None)
        for record in records:
            callback.on_step_end()
            callback.on_log(None, STATE, None, logs=record)
        callback.on_train_end()
    return caplog.messages


def test_a_log_has_every_evaluation_and_few_training_records(caplog) -> None:
    records = [training_record(6), training_record(7), EVALUATION, training_record(8), EVALUATION]
    expected = [describe(records[number], last_step=1000) for number in (0, 2, 4)]
    assert shown(records, caplog) == expected


def test_a_log_has_a_training_record_again_after_the_interval(caplog, monkeypatch) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    assert len(shown([training_record(step) for step in (6, 7, 8)], caplog)) == 3


def test_a_terminal_has_a_bar_that_begins_at_the_checkpoint(caplog, monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    records = [training_record(6), EVALUATION, training_record(7)]
    assert shown(records, caplog) == [], "the bar is there instead"
    printed = terminal.getvalue()
    assert "5/1000" in printed
    assert "8/1000" in printed.splitlines()[-1], "three steps after the fifth"
    assert describe(EVALUATION, last_step=1000) in printed
    assert "9.000" in printed, "the newest training loss"


def test_a_line_has_the_figures_of_its_record() -> None:
    line = describe(EVALUATION, last_step=20)
    for figure in ("8/20", "7.000", "1,096.6", "10.099"):
        assert figure in line
    assert "tokens/s" not in describe(training_record(3), last_step=20)
