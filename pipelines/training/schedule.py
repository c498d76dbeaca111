"""When a training run evaluates, saves and ends; all ranks decide alike."""

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.runs.directory import RunDirectory
from pipelines.training.history import Records, evaluations, patience_is_over
from pipelines.training.ranks import any_rank


class Schedule(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Decides when to evaluate, save and end.

    Args:
        run: The directory in which requests to stop appear.
        steps: Optimiser steps, if nothing ends the run early.
        evaluate_every_steps: Interval of evaluations and checkpoints; both also come at the end.
        patience: Evaluations without an improvement before training ends.
        seed: Seed of dropout; each rank draws its own masks.
        rank: This process.
    """

    def __init__(
        self,
        *,
        run: RunDirectory,
        steps: int,
        evaluate_every_steps: int,
        patience: int,
        seed: int,
        rank: int,
    ) -> None:
        self._run = run
        self._steps = steps
        self._every = evaluate_every_steps
        self._patience = patience
        self._dropout_seed = seed + rank
        self.signalled = False
        self.stopped = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Seed this rank's own dropout; a resume then restores its state."""
        torch.manual_seed(self._dropout_seed)

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> TrainerControl:
        """Decide what is due after an optimiser step."""
        last = state.global_step >= self._steps
        if self._is_due(state.global_step):
            control.should_evaluate = control.should_save = True
        control.should_log = control.should_log or last
        if not last and self.stop_is_agreed():
            # If an evaluation is due, the resumed run starts with it.
            control.should_evaluate = False
            control.should_save = control.should_training_stop = True
        return control

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> TrainerControl:
        """End when patience runs out; every rank has the same history."""
        if patience_is_over(state.log_history, self._patience):
            control.should_training_stop = True
        return control

    def owes_evaluation(self, step: int, history: Records) -> bool:
        """Whether a checkpoint was saved before the evaluation due at its step was complete.

        Args:
            step: The step of the checkpoint.
            history: The history in the checkpoint.
        """
        done = any(record["step"] == step for record in evaluations(history))
        return step > 0 and self._is_due(step) and not done

    def stop_is_agreed(self) -> bool:
        """Whether any rank is asked to stop; if so, the run counts as stopped."""
        if any_rank(self.signalled or self._run.stop_is_asked()):
            self.stopped = True
        return self.stopped

    def _is_due(self, step: int) -> bool:
        return step >= self._steps or step % self._every == 0
