"""When a run evaluates, saves and ends, step by step."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from pipelines.runs.directory import RunDirectory
from pipelines.training.schedule import Schedule

ARGS = SimpleNamespace(device=torch.device("cpu"))
STEPS = 10


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    run = RunDirectory(tmp_path / "run")
    with run.locked():
        yield run


def schedule(run: RunDirectory, **settings: int) -> Schedule:
    defaults = {"evaluate_every_steps": 4, "patience": 2, "seed": 7, "rank": 0}
    return Schedule(run=run, steps=STEPS, **(defaults | settings))


def after(found: Schedule, step: int) -> TrainerControl:
    return found.on_step_end(ARGS, TrainerState(global_step=step), TrainerControl())


def evaluations(*losses: float) -> list[dict[str, Any]]:
    return [
        {"step": 4 * number, "validation_loss_nats": loss}
        for number, loss in enumerate(losses, start=1)
    ]


def test_an_evaluation_and_a_checkpoint_come_regularly_and_at_the_end(run: RunDirectory) -> None:
    found = schedule(run)
    controls = {step: after(found, step) for step in range(1, STEPS + 1)}
    assert [step for step, c in controls.items() if c.should_evaluate] == [4, 8, 10]
    assert [step for step, c in controls.items() if c.should_save] == [4, 8, 10]
    assert [step for step, c in controls.items() if c.should_log] == [10]
    assert not any(c.should_training_stop for c in controls.values())


@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.parametrize("by_signal", [True, False])
def test_who_is_asked_to_stop_saves_at_once_and_evaluates_after_the_resume(
    run: RunDirectory, step: int, by_signal: bool
) -> None:
    found = schedule(run)
    if by_signal:
        found.signalled = True
    else:
        run.ask_to_stop()
    control = after(found, step)
    assert control.should_save
    assert control.should_training_stop
    assert not control.should_evaluate
    assert found.stopped
    assert found.owes_evaluation(step, []) == (step == 4)


def test_a_wish_to_stop_at_the_last_step_comes_too_late(run: RunDirectory) -> None:
    found = schedule(run)
    found.signalled = True
    control = after(found, STEPS)
    assert control.should_evaluate
    assert not found.stopped


def test_an_evaluation_is_owed_where_one_was_due_and_none_is_recorded(run: RunDirectory) -> None:
    found = schedule(run)
    history = [*evaluations(3.0), {"step": 8, "train_loss_nats": 1.0}]
    assert [step for step in range(STEPS + 1) if found.owes_evaluation(step, history)] == [8, 10]


def test_a_run_ends_after_as_many_evaluations_without_a_better_one(run: RunDirectory) -> None:
    losses = [5.0, 4.0, 4.0, 3.9, 4.5, 3.9, 3.0]
    found = schedule(run, patience=2)
    ended = [
        found.on_evaluate(
            ARGS, TrainerState(log_history=evaluations(*losses[:count])), TrainerControl()
        ).should_training_stop
        for count in range(1, len(losses) + 1)
    ]
    # 3.9 is the best at first, and is only equalled by the second evaluation after it.
    assert ended == [False, False, False, False, False, True, False]


def test_every_rank_drops_other_units_and_the_same_ones_each_time(run: RunDirectory) -> None:
    def mask(rank: int) -> list[float]:
        schedule(run, rank=rank).on_train_begin()
        return torch.nn.functional.dropout(torch.ones(64)).tolist()

    with torch.random.fork_rng():
        masks = [mask(rank) for rank in (0, 1, 2, 0)]
    assert masks[0] == masks[3]
    assert len({tuple(one) for one in masks}) == 3
