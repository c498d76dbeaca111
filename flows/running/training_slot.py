"""One training at a time on this machine, whichever profile, deployment or server starts it.

The slot is a file lock that the supervisor of the training holds. It is free when the last
process of the training has ended, not when a lease expires or a worker reports it. A second
training waits, and says for which process.
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
    """Return the lock of this machine and user, or `ENIGMA_TRAINING_SLOT`."""
    default = Path(tempfile.gettempdir(), f"enigma-training-{os.getuid()}.lock")
    return Path(os.environ.get(SLOT, default))


@contextmanager
def training_slot(who: str, say: Callable[[str], None]) -> Iterator[int]:
    """Hold the machine's training slot.

    Args:
        who: What is trained, for the messages of others that wait.
        say: Receives the messages of this one while it waits.

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
