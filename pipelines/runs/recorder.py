"""What a training run measures and writes to `metrics.jsonl`, which is sent to MLflow."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.runs.hardware import (
    finish_queued_work,
    peak_flops,
    peak_memory_mib,
    training_flops_per_token,
)
from pipelines.tracking.metrics_file import TIME, MetricsFile


class Recorder(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Measures speed, waiting and memory, and writes each record on rank 0.

    Args:
        metrics: The records of the run.
        tokens_per_step: Tokens that all ranks together process in one optimiser step.
        sequence_length: Tokens per sequence.
    """

    def __init__(self, metrics: MetricsFile, *, tokens_per_step: int, sequence_length: int) -> None:
        self._metrics = metrics
        self._tokens_per_step = tokens_per_step
        self._sequence_length = sequence_length
        self._full_speed: float | None = None
        self._step_began_s = 0.0
        self._busy_s = 0.0
        self._waited_s = 0.0
        self._steps = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, model: Any, **__: Any
    ) -> None:
        """Reset the file to the checkpoint's history: a killed run may have logged more."""
        self._full_speed = _full_speed_tokens_per_s(args, model, self._sequence_length)
        if state.is_world_process_zero:
            self._metrics.rewrite(state.log_history)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._step_began_s = time.perf_counter()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        *,
        train_dataloader: Any,
        **_: Any,
    ) -> None:
        """Stop the clock: evaluations and checkpoints do not count as training time."""
        if control.should_log or control.should_evaluate or control.should_save:
            # A GPU is steps behind; what waits in its queue belongs to the steps so far.
            finish_queued_work(args.device)
        self._busy_s += time.perf_counter() - self._step_began_s
        self._waited_s += train_dataloader.take_waited_s()
        self._steps += 1

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,  # noqa: ARG002
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        """Add the time and the measurements to a record, and write it."""
        logs[TIME] = time.time()
        if "train_loss_nats" in logs and self._steps:
            elapsed_s = self._busy_s + self._waited_s
            logs["tokens_per_s"] = self._steps * self._tokens_per_step / elapsed_s
            logs["data_wait_fraction"] = self._waited_s / elapsed_s
            logs["peak_memory_mib"] = peak_memory_mib(args.device)
            if self._full_speed is not None:
                logs["mfu"] = logs["tokens_per_s"] / self._full_speed
            self._busy_s = self._waited_s = 0.0
            self._steps = 0
        if state.is_world_process_zero:
            self._metrics.append(logs)


def _full_speed_tokens_per_s(args: TrainingArguments, model: Any, length: int) -> float | None:
    """Tokens/s of all ranks at the peak of their GPUs; None if the peak is unknown."""
    peak = peak_flops(args.device) if args.bf16 else None
    if peak is None:
        return None
    return float(args.world_size * peak / training_flops_per_token(model, length))
