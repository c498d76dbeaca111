"""The faults of the soak: what happens to machines, done on purpose to a running `make serve`."""

import contextlib
import os
import random
import resource
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

KILL, STOP, CONTINUE = "kill", "suspend", "resume"
# A suspended process is woken after this, unless something has killed it meanwhile.
PAUSE_S = 20.0
CLOCK_STEP_S = 120.0

Fault = Callable[[], str]


class Faults:
    """Faults on the processes and files of one clone.

    Args:
        clone: The clone of the repository in which `flows.serve` runs.
        serve: Returns the present process of `flows.serve`.
        generator: Chooses.
    """

    def __init__(
        self, clone: Path, serve: Callable[[], psutil.Process | None], generator: random.Random
    ) -> None:
        self._clone = clone
        self._serve = serve
        self._random = generator
        self._all: dict[str, Fault] = {
            "kill worker": lambda: self._to_process("worker start", KILL),
            "kill server": lambda: self._to_process("server start", KILL),
            "kill serve": lambda: self._to_process("flows.serve", KILL),
            "kill rank": lambda: self._to_process("pipelines.training.worker", KILL),
            "kill stage": lambda: self._to_process("pipelines.", KILL),
            "kill mlflow": lambda: self._to_process("mlflow server", KILL),
            "suspend rank": lambda: self._to_process("pipelines.training.worker", STOP),
            "suspend server": lambda: self._to_process("server start", STOP),
            "suspend mlflow": lambda: self._to_process("mlflow server", STOP),
            "disk full": self._disk_full,
            "clock step": self._clock_step,
            "tracking store away": self._store_away,
        }

    def names(self) -> list[str]:
        """All faults."""
        return list(self._all)

    def inject(self, name: str) -> str:
        """Do one, and say to what."""
        try:
            return self._all[name]()
        except (psutil.NoSuchProcess, FileNotFoundError, sqlite3.OperationalError) as error:
            return f"missed ({type(error).__name__})"

    def _to_process(self, words: str, action: str) -> str:
        process = self._pick(words)
        if process is None:
            return "nothing of the kind runs now"
        getattr(process, action)()
        if action == STOP:
            self._later(process.resume)
        return f"process {process.pid}"

    def _pick(self, words: str) -> psutil.Process | None:
        found = [one for one in self.processes() if words in _command(one)]
        # The supervisor's command line repeats that of the command.
        found = [one for one in found if "supervisor.py" not in _command(one)]
        return self._random.choice(found) if found else None

    def processes(self) -> Iterator[psutil.Process]:
        """Every process that works in the clone, whoever its parent is."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                inside = Path(process.cwd()).is_relative_to(self._clone)
                if inside and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def _disk_full(self) -> str:
        """No file of a stage or rank may grow: its writes fail as on a full disk."""
        process = self._pick("pipelines.")
        if process is None:
            return "nothing of the kind runs now"
        before = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        self._later(lambda: process.rlimit(psutil.RLIMIT_FSIZE, before))
        return f"process {process.pid}"

    def _clock_step(self) -> str:
        """The clock is two minutes ahead of the times of the files, as after a step of NTP."""
        paths = [*self._clone.glob("runs/*/*"), *self._clone.rglob(".enigma/**/*.lock")]
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                before_s = path.stat().st_mtime
                os.utime(path, (before_s, before_s - CLOCK_STEP_S))
        return f"{len(paths)} files"

    def _store_away(self) -> str:
        """Nobody can read or write MLflow's database."""
        path = self._clone / "mlflow.db"
        if not path.is_file():
            return "there is no store yet"
        database = sqlite3.connect(path, timeout=5, check_same_thread=False)
        database.execute("BEGIN EXCLUSIVE")
        self._later(database.close)
        return str(path.name)

    def _later(self, undo: Callable[[], object]) -> None:
        def safely() -> None:
            with contextlib.suppress(psutil.Error):
                undo()

        timer = threading.Timer(PAUSE_S, safely)
        timer.daemon = True
        timer.start()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
