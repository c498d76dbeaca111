"""Training progress: a bar on a terminal, lines in a log file."""

import logging
import sys
import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LINE_INTERVAL_S = 10.0

logger = logging.getLogger(__name__)


class Progress(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Shows steps, losses and speed; give it to rank 0 only."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._last_line_s = -LINE_INTERVAL_S

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Start the bar at the step of the checkpoint."""
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit=" step", desc="train"
            )

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update()

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        """Show every evaluation, and one training record every ten seconds."""
        line = describe(logs, last_step=state.max_steps)
        is_evaluation = "validation_loss_nats" in logs
        if self._bar is not None:
            if is_evaluation:
                self._bar.write(line, file=sys.stderr)
            else:
                self._bar.set_postfix_str(f"loss {logs['train_loss_nats']:.3f}")
        elif is_evaluation or time.monotonic() - self._last_line_s >= LINE_INTERVAL_S:
            self._last_line_s = time.monotonic()
            logger.info(line)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the bar where it is."""
        if self._bar is not None:
            self._bar.close()


def describe(record: dict[str, float], *, last_step: int) -> str:
    """Describe a record of the history in one line.

    Args:
        record: A training record or an evaluation.
        last_step: The last step of the run, if nothing ends it early.

    Example:
        >>> describe({"step": 20, "train_loss_nats": 5.25, "tokens_per_s": 3000.0}, last_step=80)
        'step 20/80: train loss 5.250 nats, 3,000 tokens/s'
    """
    where = f"step {record['step']:.0f}/{last_step}"
    if "validation_loss_nats" in record:
        return (
            f"{where}: validation loss {record['validation_loss_nats']:.3f} nats, "
            f"perplexity {record['validation_perplexity']:,.1f}, "
            f"{record['validation_bits_per_character']:.3f} bits per character"
        )
    speed = f", {record['tokens_per_s']:,.0f} tokens/s" if "tokens_per_s" in record else ""
    return f"{where}: train loss {record['train_loss_nats']:.3f} nats{speed}"
