"""What the ranks of a run decide together, and the failures that end all of them.

Each rank sees only its own signals, disk and clock; ranks that decided alone would end
at different steps, and the others would wait for them forever.
"""

from functools import cache
from pathlib import Path

import psutil
import torch
import torch.distributed

from pipelines.base.errors import UserError


def any_rank(yes: bool) -> bool:
    """Whether at least one rank says yes; every rank gets the same answer.

    The ranks vote on their hosts: on a GPU, to read a result would be to wait for all the work
    that is queued there, at every step. A host that is gone is noticed at the next vote.

    Args:
        yes: The answer of this rank.

    Returns:
        The common answer; with one process, its own.
    """
    if not torch.distributed.is_initialized():
        return yes
    votes = torch.tensor(float(yes))
    group = _hosts(torch.distributed.group.WORLD)
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX, group)
    return bool(votes)


@cache
def _hosts(world: torch.distributed.ProcessGroup) -> torch.distributed.ProcessGroup:
    """Return a group of all ranks for tensors in host memory; all make it at their first vote."""
    if torch.distributed.get_backend(world) == "gloo":
        return world
    made: torch.distributed.ProcessGroup = torch.distributed.new_group(backend="gloo")
    return made


ANOTHER_RUN = ": that is another run, from step 0; the last checkpoint of this one is kept"


class TrainingFailure(UserError):  # noqa: N818 - the outcome of the run is "failed"
    """A failure that another attempt would repeat. The last checkpoint is kept."""


class NotFiniteError(TrainingFailure):
    """The loss or a gradient became infinite or NaN."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"step {step}: expected a finite {what}, got one that is not",
            f"lower train.learning_rate{ANOTHER_RUN}",
        )


class OutOfGridError(TrainingFailure):
    """The stream of an exact model left the numbers that its grid holds."""

    def __init__(self, problem: str, step: int) -> None:
        super().__init__(
            f"step {step}: {problem}",
            f"lower train.learning_rate or set model.exact: false{ANOTHER_RUN}",
        )


class ExplodedError(TrainingFailure):
    """The loss rose too far above the lowest one so far."""

    def __init__(self, rise_nats: float, limit_nats: float, step: int) -> None:
        super().__init__(
            f"step {step}: expected a loss at most {limit_nats:g} nats above the lowest so far "
            f"(train.max_loss_rise_nats), got one {rise_nats:.2f} nats above it",
            f"lower train.learning_rate{ANOTHER_RUN}",
        )


class SaveError(TrainingFailure):
    """A checkpoint could not be written."""

    def __init__(self, step: int, problem: str, directory: Path) -> None:
        free_mb = psutil.disk_usage(str(directory)).free / 1e6
        super().__init__(
            f"the checkpoint of step {step} could not be written ({free_mb:,.0f} MB are free): "
            f"{problem}",
            "free disk space; the same command resumes from the checkpoint before it",
        )
