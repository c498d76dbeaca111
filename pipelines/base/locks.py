"""A file lock that says who holds it, and processes that are recognised without a clock."""

import errno
import fcntl
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from pipelines.base.errors import UserError

# Where every user may write, on every machine.
SHARED = Path("/tmp")  # noqa: S108 - what is in it is checked
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Holder:
    """The process that took a lock, as the text of the lock names it.

    A process id is given to another process in time, and both the clock and the time of a file
    may jump. So a process is known by the boot of its machine and the tick of that boot at which
    it began.

    Args:
        process_id: Its number.
        host: The name of its machine.
        boot: The boot of that machine.
        tick: When it began, in the kernel's own count since the boot.
        task: What it does, for people.
    """

    process_id: int
    host: str
    boot: str
    tick: str
    task: str = ""

    @classmethod
    def this_process(cls, task: str = "") -> "Holder":
        """Describe this process."""
        found = os.getpid()
        return cls(found, socket.gethostname(), boot_id(), start_tick(found) or "-", task)

    @classmethod
    def parse(cls, text: str) -> "Holder | None":
        """Read the text of a lock; None if a process died while it wrote it."""
        parts = text.strip().split(" ", 4)
        if len(parts) < 4 or not parts[0].isdigit():
            return None
        return cls(int(parts[0]), *parts[1:])

    def __str__(self) -> str:
        """The text of the lock."""
        facts = (self.process_id, self.host, self.boot, self.tick, self.task)
        return " ".join(map(str, facts)).rstrip()

    def shown(self) -> str:
        """What people need: process, machine, task."""
        return f"{self.process_id} {self.host} {self.task}".rstrip()

    def state(self) -> Literal["alive", "dead", "elsewhere"]:
        """Whether the process still runs; "elsewhere" if it is not on this boot of this machine."""
        if self.host != socket.gethostname() or self.boot != boot_id():
            return "elsewhere"
        return "alive" if start_tick(self.process_id) == self.tick else "dead"


def boot_id() -> str:
    """Name the present boot of this machine; "-" where the kernel has no name for it (macOS)."""
    return BOOT_ID.read_text(encoding="ascii").strip() if BOOT_ID.is_file() else "-"


def start_tick(process_id: int) -> str | None:
    """Return when a process began, in ticks since the boot; None if there is no such process.

    A zombie counts as none. On macOS it is the time that the kernel stored when it began.
    """
    if sys.platform != "linux":
        try:
            process = psutil.Process(process_id)
            return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
        except psutil.NoSuchProcess:
            return None
    try:
        text = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the name of the program, in parentheses, may contain spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    state, tick = fields[0], fields[19]
    return None if state in {"Z", "X"} else tick


@contextmanager
def held_lock(path: Path, when_taken: Callable[[str], None], *, task: str = "") -> Iterator[int]:
    """Hold a lock for as long as this process, or a child that inherits it, lives.

    Its text is the `Holder`; only this user can read it.

    Args:
        path: The lock file; its directory is created.
        when_taken: Called with process, machine and task of the holder if another process has
            the lock. It may raise; if it returns, this process waits for its turn.
        task: What this process is doing, shown to others that wait.

    Yields:
        The file descriptor of the lock. A child that inherits it keeps holding the lock if
        this process is killed.

    Raises:
        UserError: If there is a file that is not a lock of this user.
        OSError: If the lock cannot be made there.
    """
    descriptor = _locked(path, when_taken)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as stream:
        stream.truncate()
        stream.write(str(Holder.this_process(" ".join(task.split()))))
        stream.flush()
        yield stream.fileno()


def read_holder(path: Path) -> Holder | None:
    """Read who took a lock last, without touching it.

    Returns:
        The holder; None if nobody ever did, or the file cannot be read by this user.
    """
    try:
        return Holder.parse(path.read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, PermissionError):
        return None


def _locked(path: Path, when_taken: Callable[[str], None]) -> int:
    """Open and lock the file that the path names when the lock is obtained."""
    told = False
    while True:
        descriptor = _opened(path)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    told = True
                    holder = Holder.parse(os.pread(descriptor, 4096, 0).decode(errors="replace"))
                    when_taken(holder.shown() if holder else "(unknown)")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Someone removed the file meanwhile: the lock is on a file that nobody else can find.
        os.close(descriptor)


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.EROFS or not os.path.lexists(path):
            # Nobody has a lock there: it is the place that is no good.
            raise
        link = error.errno == errno.ELOOP
        raise UserError(
            f"{path}: expected a lock file of this user, got "
            f"{'a symbolic link' if link else error.strerror}",
            f"see who made it (ls -l {path}), and remove it",
        ) from None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    # Its content would be replaced.
    raise UserError(
        f"{path}: expected a lock file of this user, got a file of user {found.st_uid} with "
        f"{found.st_nlink} names",
        f"see who made it (ls -l {path}), and remove it",
    )


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def user_directory() -> Path:
    """Make the directory of this user on this machine for what all of its sessions share.

    It does not depend on `TMPDIR` or on a login session, so a job of cron and a person in a
    terminal find the same one. Others may make one of this name in `/tmp` before; then it is
    refused.

    Raises:
        UserError: If it is not a directory that this user alone can change.
    """
    path = SHARED / f"enigma-{os.geteuid()}"
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid != os.geteuid()
        or stat.S_IMODE(found.st_mode) & 0o022
    ):
        raise UserError(
            f"{path}: expected a directory that only user {os.geteuid()} may change, got one of "
            f"user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}",
            f"see who made it (ls -ld {path}); root may remove it",
        )
    return path
