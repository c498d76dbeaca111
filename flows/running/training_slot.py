"""One training at a time on this machine, whichever profile, deployment or server asks.

The slot is a file lock that the supervisor of the training holds: it is free when the
last process of the training tree has ended, not when a lease runs out or a worker says
so. A second training waits, and says for whom.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.base.locks import held_lock

SLOT = "ENIGMA_TRAINING_SLOT"
STAGES = ("train", "train_flow")


def slot_path() -> Path:
    """The lock of this machine and user; `ENIGMA_TRAINING_SLOT` names another."""
    default = Path(tempfile.gettempdir(), f"enigma-training-{os.getuid()}.lock")
    return Path(os.environ.get(SLOT, default))


@contextmanager
def training_slot(who: str, say: Callable[[str], None]) -> Iterator[int]:
    """Hold the machine's training slot.

    Args:
        who: What is trained, for others who wait.
        say: Told whom this one waits for.

    Yields:
        The file descriptor that holds the lock; hand it to the supervisor.
    """
    waited = []

    def wait(holder: str) -> None:
        waited.append(holder)
        say(f"waiting: one training at a time on this machine, now process {holder}")

    with held_lock(slot_path(), wait, task=who) as lock:
        if waited:
            say("waiting is over")
        yield lock
