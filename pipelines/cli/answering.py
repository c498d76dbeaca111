"""The champion at work for `enigma serve`: it follows its alias and takes requests in turns.

Text is generated in one thread, apart from the event loop that answers for its health: however
many requests wait, and however long a text is, `/health` answers at once.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from enigma.generation import Sampling, continue_text
from pipelines.base.errors import UserError
from pipelines.cli.service_metrics import ServiceMetrics
from pipelines.registry.names import LM
from pipelines.registry.versions import Champion, champion_version, load_champion

POLL_INTERVAL_S = 2.0
# A champion that cannot be loaded is tried again after pauses that grow to this.
MAX_PAUSE_S = 30.0
PAUSE_GROWTH = 1.25
# Requests that may wait for their turn; the next one is told to come back.
MAX_WAITING = 16
LOOK_INTERVAL_S = 0.1
MAX_RETRY_AFTER_S = 60

logger = logging.getLogger(__name__)


class BusyError(Exception):
    """Too many requests wait already.

    Args:
        retry_after_s: When the queue will probably be shorter.
    """

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(retry_after_s)


class LeftError(Exception):
    """Nobody waits for the text any more."""


@dataclass(eq=False)
class Turn:
    """One request's turn, as a streamer of transformers: it counts tokens and can be ended."""

    abandoned: threading.Event = field(default_factory=threading.Event)
    # The first call brings the prompt.
    tokens: int = -1

    def put(self, _ids: Any) -> None:
        """Count a token.

        Raises:
            LeftError: If nobody waits for the text; this ends the generation.
        """
        if self.abandoned.is_set():
            raise LeftError
        self.tokens += 1

    def end(self) -> None:
        """The text is complete."""


class Server:
    """Holds the champion, follows its alias, and answers one request at a time."""

    def __init__(self) -> None:
        self._champion = load_champion()
        self.wanted = self._champion.version
        self.problem: str | None = None
        self.metrics = ServiceMetrics()
        # Sampling uses torch's global generator, so requests take turns.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="generate")
        self._turns: set[Turn] = set()
        self._mean_s = 1.0
        self._stop = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="follow-alias", daemon=True)

    @property
    def champion(self) -> Champion:
        """The champion that answers now."""
        return self._champion

    @property
    def degraded(self) -> bool:
        """Whether the version that answers is not known to be the one that the alias names."""
        return self.problem is not None or self.wanted != self._champion.version

    @property
    def is_full(self) -> bool:
        """Whether the next request would be refused."""
        return len(self._turns) > MAX_WAITING

    @property
    def queue_length(self) -> int:
        """Requests that wait or are answered now."""
        return len(self._turns)

    @property
    def retry_after_s(self) -> int:
        """When the queue will probably have been worked off."""
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(self._mean_s * len(self._turns))))

    def start(self) -> None:
        """Start to follow the alias."""
        self._follower.start()

    def stop(self) -> None:
        """Stop following, and end the text that is being generated."""
        self._stop.set()
        for turn in list(self._turns):
            turn.abandoned.set()
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def answer(
        self, prompt: str, sampling: Sampling, has_left: Callable[[], Awaitable[bool]]
    ) -> tuple[str, str]:
        """Continue a prompt when it is its turn.

        Args:
            prompt: The text to continue.
            sampling: How tokens are drawn.
            has_left: Tells whether the client has closed its connection.

        Returns:
            The text with its continuation, and the version that wrote it.

        Raises:
            BusyError: If too many requests wait.
            LeftError: If the client left; its text is not generated any further.
        """
        if self.is_full:
            raise BusyError(self.retry_after_s)
        turn = Turn()
        self._turns.add(turn)
        work = asyncio.get_running_loop().run_in_executor(
            self._worker, self._generate, prompt, sampling, turn
        )
        try:
            while not (await asyncio.wait({work}, timeout=LOOK_INTERVAL_S))[0]:
                if await has_left():
                    raise LeftError
            return work.result()
        finally:
            turn.abandoned.set()
            work.cancel()
            self._turns.discard(turn)

    def _generate(self, prompt: str, sampling: Sampling, turn: Turn) -> tuple[str, str]:
        champion = self._champion
        began_s = time.monotonic()
        try:
            added = continue_text(
                champion.model, champion.tokenizer, prompt, sampling, streamer=turn
            )
        finally:
            elapsed_s = time.monotonic() - began_s
            self._mean_s = 0.8 * self._mean_s + 0.2 * elapsed_s
            self.metrics.generated(max(turn.tokens, 0), elapsed_s)
        return prompt + added, champion.version

    def _follow(self) -> None:
        """Load the champion that the alias names, until the server stops.

        Whatever a damaged model or a store raises, this goes on: otherwise the old version would
        be served for ever.
        """
        pause_s = POLL_INTERVAL_S
        while not self._stop.wait(pause_s):
            before = self.wanted
            try:
                self._catch_up()
                problem = None
            except UserError as error:
                problem = error.problem
            except Exception as error:  # noqa: BLE001 - see above
                problem = f"{type(error).__name__}: {error}"
            again = problem is not None and self.problem is not None and before == self.wanted
            if problem is not None and not again:
                logger.warning(
                    "version %s keeps answering, %s is wanted: %s",
                    self._champion.version, self.wanted, problem,
                )  # fmt: skip
            pause_s = min(MAX_PAUSE_S, pause_s * PAUSE_GROWTH) if again else POLL_INTERVAL_S
            self.problem = problem

    def _catch_up(self) -> None:
        self.wanted = champion_version()
        if self.wanted != self._champion.version:
            self._champion = load_champion(self.wanted)
            logger.info("%s version %s answers from now on", LM, self.wanted)
