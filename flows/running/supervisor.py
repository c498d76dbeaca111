"""Run a command so that no process of it outlives the process that started it.

    python flows/running/supervisor.py PARENT_PID GRACE_S STDOUT COMMAND...

DVC and torchrun do not end their process tree when they are killed: the stage keeps
writing, unseen. So every command of a flow runs under a small supervisor in a session of
its own. The kernel signals the supervisor when its parent dies (`PR_SET_PDEATHSIG`, also
after `kill -9`) and gives it every descendant whose own parent died
(`PR_SET_CHILD_SUBREAPER`), whatever sessions they made. The supervisor ends with the
command, or on TERM. Either way it first ends all descendants: TERM to those of its own
session, a grace period, TERM to the rest, KILL. A checkpoint that is being saved extends the
grace. macOS has neither call: a cancelled command is ended there too, but not the command of a
parent that got `kill -9`.
"""

import codecs
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

# For the command; the processes it leaves get a third of it more. Together less than the 15 s
# within which a cancelled run must be gone, unless it is saving a checkpoint.
GRACE_S = 9.0
LEFT_SHARE = 1 / 3
# A checkpoint is written below a directory of this name (pipelines/runs/checkpoints.py). A slow
# disk may take longer for it than the grace; a pod is killed after 300 s.
SAVING = f"{os.sep}.building{os.sep}"
SAVE_LIMIT_S = 240.0
LOOK_S = 1.0
POLL_S = 0.05
STOPPED = 128 + signal.SIGTERM
NOT_FOUND = 127
# As the supervisor's argument STDOUT, in place of a file descriptor.
RELAYED = "relayed"
# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def start_supervised(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    grace_s: float = GRACE_S,
    keep_open: Sequence[int] = (),
    stdout: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command under a supervisor.

    Args:
        command: Program and arguments.
        cwd: Its working directory.
        env: Its whole environment.
        grace_s: How long the command may take to end after TERM; the processes it leaves
            get a third of it more.
        keep_open: File descriptors that the supervisor (not the command) holds
            open until every process is gone: a lock on them lives as long.
        stdout: File descriptor of a file that receives stdout of the command.

    Returns:
        The supervisor; its stdout carries stderr of the command, and stdout too where
        `stdout` is None. TERM ends it and all of the command. It ends with the command's
        exit code, with 128 + n where signal n ended the command, and with 127 where there
        is no such program.
    """
    supervisor = [sys.executable, "-P", str(Path(__file__).resolve())]
    output = RELAYED if stdout is None else str(stdout)
    inherited = keep_open if stdout is None else [*keep_open, stdout]
    return subprocess.Popen(
        [*supervisor, str(os.getpid()), str(grace_s), output, *command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=inherited,
    )


def run_supervised(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    on_line: Callable[[str], None],
    grace_s: float = GRACE_S,
    keep_open: Sequence[int] = (),
    stdout: int | None = None,
) -> int:
    """Run a command under a supervisor to its end, and pass on its output as it comes.

    An exception meanwhile, like the one by which Prefect cancels a flow run, ends the whole
    process tree before it propagates. The output until then is read and dropped: a stage
    that saves a checkpoint must not die of a broken pipe.

    Args:
        command: Program and arguments.
        cwd: Its working directory.
        env: Its whole environment.
        on_line: Called with every line of the output.
        grace_s: How long the command may take to end after TERM; the processes it leaves
            get a third of it more.
        keep_open: As in `start_supervised`.
        stdout: As in `start_supervised`.

    Returns:
        The exit code, as in `start_supervised`.
    """
    process = start_supervised(
        command, cwd=cwd, env=env, grace_s=grace_s, keep_open=keep_open, stdout=stdout
    )
    try:
        for line in read_lines(process):
            on_line(line)
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate()
    return process.returncode


def read_lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yield the output's lines that are not blank; a progress bar's redraw is a line."""
    rest = ""
    for text in _decoded(process.stdout):
        *lines, rest = re.split(r"[\r\n]", rest + text)
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest


def _decoded(stream: IO[bytes] | None) -> Iterator[str]:
    if stream is None:
        return
    # A read may end within a character: the decoder keeps its first bytes.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while chunk := os.read(stream.fileno(), 65536):
        yield decoder.decode(chunk)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a supervisor and everything under it; returns when all of it is gone."""
    if process.poll() is None:
        process.terminate()
    process.wait()


def supervise(parent: int, grace_s: float, stdout: int | None, command: Sequence[str]) -> int:
    """Run a command below this process; every process below it ends before this returns.

    Args:
        parent: Id of the process that started this one.
        grace_s: How long the command may take to end after TERM; the processes it leaves
            get a third of it more.
        stdout: File descriptor that receives stdout of the command; None to relay it.
        command: Program and arguments.

    Returns:
        The exit code for this process.
    """
    requests: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Only noted: an exception from a handler could interrupt the end of the descendants.
        signal.signal(number, lambda got, _frame: requests.append(got))
    _bind_to_parent()
    if os.getppid() != parent:
        # It died before the kernel was asked to signal this.
        return STOPPED
    output, inherited = os.pipe()
    try:
        child = subprocess.Popen(
            command, stdout=inherited if stdout is None else stdout, stderr=inherited
        )
    except FileNotFoundError:
        sys.stderr.write(f"error: {command[0]}: no such program\n")
        return NOT_FOUND
    os.close(inherited)
    relay = threading.Thread(target=_relay, args=(output, sys.stdout.fileno()), daemon=True)
    relay.start()
    code = _wait_for(child.pid, requests)
    _end_descendants(grace_s)
    relay.join()
    return code


def _relay(output: int, target: int) -> None:
    """Pass the output on, and keep reading it when nobody listens any more.

    The command may be saving a checkpoint because its parent was killed: its next line
    must not meet a broken pipe.
    """
    while chunk := os.read(output, 65536):
        # A pipe that is broken stays broken: every later chunk is dropped as well. No other error
        # may end this thread either, as the command would wait for a reader for ever.
        with contextlib.suppress(OSError):
            while chunk:
                chunk = chunk[os.write(target, chunk) :]


def _bind_to_parent() -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        for option, value in ((PR_SET_PDEATHSIG, signal.SIGTERM), (PR_SET_CHILD_SUBREAPER, 1)):
            if libc.prctl(option, value, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "prctl")


def _wait_for(child: int, requests: Sequence[int]) -> int:
    """Reap what ends, adopted orphans too, until the command has ended or a signal arrived."""
    while not requests:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if pid == 0:
            time.sleep(POLL_S)
    return STOPPED


def _end_descendants(grace_s: float) -> None:
    """End every descendant.

    First only those of this session: a stage that is asked alone can let its ranks save a
    checkpoint, while a TERM to all at once would kill them before. For the same reason a
    supervisor below this one ends its own descendants.
    """
    session = os.getsid(0)
    _terminate(lambda process: _session_of(process) == session, grace_s)
    _terminate(lambda _process: True, grace_s * LEFT_SHARE)
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(POLL_S)
        _reap()


def _terminate(chosen: Callable[[psutil.Process], bool], patience_s: float) -> None:
    """Send TERM once to each chosen descendant, until none is left or the time is up.

    While any descendant saves, the time begins anew.
    """
    look_s = time.monotonic()
    deadline, limit = look_s + patience_s, look_s + SAVE_LIMIT_S
    asked: set[psutil.Process] = set()
    while targets := {process for process in _in_care_of(psutil.Process()) if chosen(process)}:
        for process in targets - asked:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        asked |= targets
        now_s = time.monotonic()
        if now_s >= look_s:
            look_s = now_s + min(LOOK_S, patience_s / 2)
            if now_s < limit and any(map(_saves, psutil.Process().children(recursive=True))):
                deadline = now_s + patience_s
        if now_s > deadline:
            return
        time.sleep(POLL_S)
        _reap()


def _saves(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(SAVING in file.path for file in process.open_files())
    return False


def _in_care_of(process: psutil.Process) -> Iterator[psutil.Process]:
    """Yield descendants, with other supervisors but without what is below them."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in process.children():
            yield child
            if str(Path(__file__).resolve()) not in _command_line(child):
                yield from _in_care_of(child)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            continue


def _session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


if __name__ == "__main__":
    target = None if sys.argv[3] == RELAYED else int(sys.argv[3])
    sys.exit(supervise(int(sys.argv[1]), float(sys.argv[2]), target, sys.argv[4:]))
