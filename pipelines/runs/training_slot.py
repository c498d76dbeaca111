"""One training at a time on this machine, whoever starts it: a flow, or `dvc repro` by hand.

The slot is a file lock that the launcher and the ranks of a training hold. It is free when the
last of these processes has ended. A second training waits, and says for which process.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.base.locks import held_lock, user_directory

SLOT = "ENIGMA_TRAINING_SLOT"

logger = logging.getLogger(__name__)


def slot_path() -> Path:
    """Return the lock of this machine and user, or `ENIGMA_TRAINING_SLOT`."""
    chosen = os.environ.get(SLOT)
    return Path(chosen) if chosen else user_directory() / "training.lock"


@contextmanager
def training_slot(who: str) -> Iterator[int]:
    """Hold the machine's training slot, after those that hold it now.

    Args:
        who: What is trained, for others that wait.

    Yields:
        The file descriptor that holds the lock; processes that inherit it hold the slot, too.

    Raises:
        UserError: If the lock is not a file of this user.
    """
    waited = []

    def wait(holder: str) -> None:
        waited.append(holder)
        logger.info("waiting: one training at a time on this machine, now process %s", holder)

    with held_lock(slot_path(), wait, task=who) as lock:
        if waited:
            logger.info("waiting is over")
        yield lock
