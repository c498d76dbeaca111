"""Ends of a training run that another try would meet again; all ranks meet them together."""

from pathlib import Path

import psutil

from pipelines.base.errors import UserError


class TrainingFailure(UserError):  # noqa: N818 - the outcome of the run is "failed"
    """A run that cannot go on as it is; its last checkpoint is kept."""


class NotFiniteError(TrainingFailure):
    """The loss or a gradient became infinite or not a number."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"step {step}: expected a finite {what}, got one that is not",
            "lower train.learning_rate or train.max_gradient_norm; "
            "the last checkpoint before this is kept",
        )


class ExplodedError(TrainingFailure):
    """The loss rose too far above the lowest one before it."""

    def __init__(self, rise_nats: float, limit_nats: float, step: int) -> None:
        super().__init__(
            f"step {step}: expected a loss at most {limit_nats:g} nats above the lowest so far "
            f"(train.max_loss_rise_nats), got one {rise_nats:.2f} nats above it",
            "lower train.learning_rate or lengthen the warm-up; the last checkpoint before "
            "this is kept",
        )


class SaveError(TrainingFailure):
    """A checkpoint could not be written."""

    def __init__(self, step: int, problem: str, directory: Path) -> None:
        free_mb = psutil.disk_usage(str(directory)).free / 1e6
        super().__init__(
            f"the checkpoint of step {step} could not be written ({free_mb:,.0f} MB are free): "
            f"{problem}",
            "make room; the same command goes on from the checkpoint before it",
        )
