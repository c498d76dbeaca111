"""When a training run evaluates, saves and ends; all ranks decide the same."""

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.runs.directory import RunDirectory
from pipelines.training.history import Records, evaluations, patience_is_over
from pipelines.training.ranks import any_rank


class Schedule(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """When to evaluate, to save and to end.

    Args:
        run: Where a wish to stop is found.
        steps: Optimiser steps, if nothing ends it earlier.
        evaluate_every_steps: An evaluation and a checkpoint come so often, and at the end.
        patience: Evaluations without a better one before training ends.
        seed: Of dropout; each rank draws its own masks.
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
        """Give this rank its own dropout; a resume then restores where it was."""
        torch.manual_seed(self._dropout_seed)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Decide what is due after an optimiser step."""
        last = state.global_step >= self._steps
        if self._is_due(state.global_step):
            control.should_evaluate = control.should_save = True
        control.should_log = control.should_log or last
        if not last and self.stop_is_agreed(args.device):
            # The evaluation, if one is due, comes first thing after the resume.
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
        """End when the patience is over; every rank has the same history."""
        if patience_is_over(state.log_history, self._patience):
            control.should_training_stop = True
        return control

    def owes_evaluation(self, step: int, history: Records) -> bool:
        """Whether a checkpoint was saved in the middle of the evaluation that was due.

        Args:
            step: The step of the checkpoint.
            history: The history in it.
        """
        done = any(record["step"] == step for record in evaluations(history))
        return step > 0 and self._is_due(step) and not done

    def stop_is_agreed(self, device: torch.device) -> bool:
        """Whether any rank is asked to stop; if so, the run counts as stopped."""
        if any_rank(self.signalled or self._run.stop_is_asked(), device):
            self.stopped = True
        return self.stopped

    def _is_due(self, step: int) -> bool:
        return step >= self._steps or step % self._every == 0
