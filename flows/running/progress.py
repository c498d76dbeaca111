"""Progress of a long stage as an artifact, read from the output of the stage."""

import logging
import re
import time
from typing import cast
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

INTERVAL_S = 5.0
# "step 20/80: ..." of a training, and "flow: 34% (137/400 steps)" of other stages.
STEPS = re.compile(r"\bstep (\d+)/(\d+)")
SHARE = re.compile(r": (\d+)% \(\d+/")

logger = logging.getLogger(__name__)


def artifact_key(words: str) -> str:
    """Return a key that Prefect accepts: lower-case letters, digits and single dashes.

    Example:
        >>> artifact_key("progress-train_flow-wiki-zh")
        'progress-train-flow-wiki-zh'
    """
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def percent_of(line: str) -> float | None:
    """Return how much is done, in percent; None if the line does not say.

    Example:
        >>> percent_of("12:00:01 INFO x: step 20/80: train loss 5.25 nats")
        25.0
        >>> percent_of("12:00:10 INFO x: flow: 34% (137/400 steps) in 10 s")
        34.0
    """
    if (steps := STEPS.search(line)) and int(steps[2]) > 0:
        return min(100.0, 100.0 * int(steps[1]) / int(steps[2]))
    return float(share[1]) if (share := SHARE.search(line)) else None


class StageProgress:
    """A progress artifact of one stage, made at the first line that states progress.

    Args:
        stage: The stage.
        profile: The profile.
    """

    def __init__(self, stage: str, profile: str) -> None:
        self._key = artifact_key(f"progress-{stage}-{profile}")
        self._about = f"{stage} of {profile}"
        self._artifact: UUID | None = None
        self._shown_s = 0.0
        self._away = False

    def hear(self, line: str) -> None:
        """Read a line of output; the artifact is updated at most every five seconds.

        A server that is away must not end the stage whose progress it would show.
        """
        percent = percent_of(line)
        now_s = time.monotonic()
        if percent is None or (percent < 100.0 and now_s - self._shown_s < INTERVAL_S):
            return
        self._shown_s = now_s
        try:
            self._show(percent)
        except (PrefectException, HTTPError, OSError) as error:
            if not self._away:
                logger.warning("progress is not shown for now: %s", error)
            self._away = True
        else:
            self._away = False

    def _show(self, percent: float) -> None:
        if self._artifact is None:
            # It is a coroutine only in an event loop, and no task here runs in one.
            self._artifact = cast(
                "UUID",
                create_progress_artifact(percent, key=self._key, description=self._about),
            )
        else:
            update_progress_artifact(self._artifact, percent)
