"""One training at a time on this machine, whichever profile, deployment or server asks.

The slot is a file lock that the supervisor of the training holds: it is free when the
last process of the training tree has ended, not when a lease runs out or a worker says
so. A second training waits, and says for whom.
"""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
    descriptor = os.open(slot_path(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting: one training at a time on this machine, now: {stream.read().strip()}")
            fcntl.flock(stream, fcntl.LOCK_EX)
            say("waiting is over")
        stream.seek(0)
        stream.truncate(0)
        stream.write(f"{who}, process {os.getpid()}")
        stream.flush()
        yield stream.fileno()
