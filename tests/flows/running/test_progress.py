"""A stage's progress becomes one artifact, updated no more often than people can read."""

import pytest
from httpx import ConnectError

from flows.running import progress
from flows.running.progress import StageProgress


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    calls: list[tuple[str, float]] = []

    def create(percent: float, key: str, description: str) -> str:
        calls.append((key, percent))
        return "id"

    monkeypatch.setattr(progress, "create_progress_artifact", create)
    monkeypatch.setattr(
        progress, "update_progress_artifact", lambda _id, percent: calls.append(("", percent))
    )
    return calls


def test_progress_is_sent_at_intervals_and_at_the_end(
    sent: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s)
    stage = StageProgress("train_flow", "wiki-zh")
    stage.hear("loading the model")
    assert sent == []
    stage.hear("step 10/80: loss 5.2")
    stage.hear("step 11/80: loss 5.2")
    now_s += progress.INTERVAL_S
    stage.hear("12:00:10 INFO x: flow: 50% (5/10 steps) in 3 s")
    stage.hear("step 80/80: loss 5.0")
    assert sent == [("progress-train-flow-wiki-zh", 12.5), ("", 50.0), ("", 100.0)]


def test_a_server_that_is_away_does_not_end_the_stage(
    sent: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectError("refused")

    stage = StageProgress("train", "sanguo")
    with monkeypatch.context() as patch:
        patch.setattr(progress, "create_progress_artifact", refuse)
        stage.hear("step 80/80: loss 5.2")
    stage.hear("step 80/80: loss 5.2")
    assert sent == [("progress-train-sanguo", 100.0)]


@pytest.mark.parametrize("line", ["step 0/0", "no progress", "%|"])
def test_a_line_without_progress_says_nothing(line: str) -> None:
    assert progress.percent_of(line) is None
