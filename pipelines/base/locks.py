"""A file lock that says who holds it."""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held_lock(path: Path, when_taken: Callable[[str], None], *, task: str = "") -> Iterator[int]:
    """Hold a lock for as long as this process, or a child that inherits it, lives.

    Its text is `<process id> <host> <task>` of the holder; only this user can read it.

    Args:
        path: The lock file; its directory is created.
        when_taken: Called with the holder's text if another process has the lock. It may
            raise; if it returns, this process waits for its turn.
        task: What the holder is doing, shown to others that wait.

    Yields:
        The file descriptor of the lock. A child that inherits it keeps holding the lock if
        this process is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            when_taken(stream.read().strip() or "(unknown)")
            fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        stream.truncate()
        stream.write(f"{os.getpid()} {socket.gethostname()} {task}".rstrip())
        stream.flush()
        yield stream.fileno()
