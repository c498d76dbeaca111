"""The supervisor, with real processes: none may outlive the process that started it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.running.supervisor import NOT_FOUND, run_supervised
from pipelines.runs.checkpoints import building_path, checkpoint_path

# A tree like torchrun's: a child in a session of its own, which has one in another,
# which ignores TERM. All of them carry the marker on their command line.
TREE = """
import signal, subprocess, sys, time
marker, depth = sys.argv[1], int(sys.argv[2])
if depth == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    command = [sys.executable, "-c", sys.argv[3], marker, str(depth - 1), sys.argv[3]]
    subprocess.Popen(command, start_new_session=True)
print("depth", depth, "is up", flush=True)
time.sleep(600 if depth != 1 else 0.5)
"""
SUPERVISE = """
import os, sys
from pathlib import Path
from flows.running.supervisor import run_supervised
run_supervised(sys.argv[1:], cwd=Path(), env=dict(os.environ), on_line=print, grace_s=1.0)
"""


def tree(marker: str, depth: int = 2) -> list[str]:
    return [sys.executable, "-c", TREE, marker, str(depth), TREE]


def alive(marker: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if marker in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@pytest.fixture
def marker(tmp_path: Path):
    name = f"supervisor-test-{os.getpid()}-{tmp_path.name}"
    yield name
    for process in alive(name):
        process.kill()


def run(command: list[str], **options) -> tuple[int, list[str]]:
    lines: list[str] = []
    code = run_supervised(
        command, cwd=Path(), env=dict(os.environ), on_line=lines.append, **options
    )
    return code, lines


@pytest.mark.parametrize("code", [0, 1, 255])
def test_the_exit_code_is_the_commands(code: int) -> None:
    assert run([sys.executable, "-c", f"raise SystemExit({code})"]) == (code, [])


def test_a_signal_is_reported_as_the_shell_does() -> None:
    code, _ = run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert code == 128 + signal.SIGKILL


def test_a_program_that_does_not_exist() -> None:
    code, lines = run(["no-such-program-of-ours"])
    assert code == NOT_FOUND
    assert lines == ["error: no-such-program-of-ours: no such program"]


def test_stdout_can_go_to_a_file_of_its_own(tmp_path: Path) -> None:
    script = "import sys; print('answer'); print('log', file=sys.stderr)"
    with (tmp_path / "stdout").open("w") as file:
        assert run([sys.executable, "-c", script], stdout=file.fileno()) == (0, ["log"])
    assert (tmp_path / "stdout").read_text() == "answer\n"


def test_output_comes_line_by_line_while_the_command_runs() -> None:
    script = (
        "import sys, time\n"
        "sys.stdout.buffer.write('曹'.encode()[:2]); sys.stdout.flush(); time.sleep(0.3)\n"
        "sys.stdout.buffer.write('曹'.encode()[2:] + b'\\n'); sys.stdout.flush()\n"
        "sys.stderr.write('\\r 10 %\\r 20 %\\n\\n'); sys.stderr.flush(); time.sleep(0.5)\n"
        "print('end', end='')\n"
    )
    times: dict[str, float] = {}
    run_supervised(
        [sys.executable, "-c", script],
        cwd=Path(),
        env=dict(os.environ),
        on_line=lambda line: times.setdefault(line, time.monotonic()),
    )
    assert list(times) == ["曹", " 10 %", " 20 %", "end"]
    assert times["end"] - times["曹"] > 0.3


def test_what_a_command_leaves_behind_is_swept(marker: str) -> None:
    script = tree(marker, depth=0)
    leave = f"import subprocess; subprocess.Popen({script!r}, start_new_session=True)"
    code, _ = run([sys.executable, "-c", leave], grace_s=0.5)
    assert code == 0
    assert alive(marker) == []


def test_a_cancel_ends_the_whole_tree(marker: str) -> None:
    """Prefect cancels by an exception in the thread that waits."""

    def cancel(line: str) -> None:
        if line == "depth 0 is up":
            assert len(alive(marker)) >= 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_supervised(tree(marker), cwd=Path(), env=dict(os.environ), on_line=cancel, grace_s=0.5)
    assert alive(marker) == []


def test_kill_9_of_the_parent_leaves_no_orphan(marker: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, *tree(marker)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert any("depth 0 is up" in line for line in parent.stdout)
    # The middle of the tree has ended by itself: its child is an orphan by now.
    assert wait_until(lambda: len([p for p in alive(marker) if p.pid != parent.pid]) == 3)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: alive(marker) == [], timeout_s=8.0)


def saving(marker: str, saved: Path) -> list[str]:
    """A command that saves when it is told to end, as `pipelines.train` does.

    Its ranks have a session of their own, and it writes more than a pipe holds.
    """
    script = f"""
import pathlib, signal, subprocess, sys, time
rank = [sys.executable, "-c", "import time; time.sleep(600)", {marker!r}]
rank = subprocess.Popen(rank, start_new_session=True)
def save(*_):
    time.sleep(0.5)
    print("saving " * 50_000, flush=True)
    pathlib.Path({str(saved)!r}).write_text(str(rank.poll()))
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
print("up", flush=True)
rank.wait()
"""
    return [sys.executable, "-c", script, marker]


def test_a_cancelled_command_may_save_before_its_children_are_touched(
    marker: str, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"

    def cancel(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_supervised(saving(marker, saved), cwd=Path(), env=dict(os.environ), on_line=cancel)
    assert saved.read_text() == "None", "the rank was alive when its launcher saved"
    assert alive(marker) == []


@pytest.mark.parametrize("saves", [True, False])
def test_the_grace_lasts_as_long_as_a_rank_saves(marker: str, tmp_path: Path, saves: bool) -> None:
    target = checkpoint_path(building_path(tmp_path) if saves else tmp_path, 1) / "weights"
    target.parent.mkdir(parents=True)
    rank = f"""
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open({str(target)!r}, "w") as file:
    print("open", flush=True)
    time.sleep(3)
    file.write("whole")
"""
    script = f"""
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.run([sys.executable, "-c", {rank!r}, {marker!r}], start_new_session=True)
"""

    def cancel(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_supervised(
            [sys.executable, "-c", script, marker],
            cwd=Path(),
            env=dict(os.environ),
            on_line=cancel,
            grace_s=0.5,
        )
    assert target.read_text() == ("whole" if saves else "")
    assert alive(marker) == []


def test_kill_9_of_the_parent_lets_the_command_save(marker: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISE.replace("1.0", "10.0"), *saving(marker, saved)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert any("up" in line for line in parent.stdout)
        parent.kill()
    assert wait_until(lambda: alive(marker) == [])
    assert saved.read_text() == "None"


def test_a_descriptor_stays_open_until_everything_is_gone(marker: str) -> None:
    reader, writer = os.pipe()
    command = [
        sys.executable,
        "-c",
        f"import os, sys\ntry: os.fstat({writer})\nexcept OSError: sys.exit(7)",
    ]
    code, _ = run(command, keep_open=[writer])
    os.close(reader)
    os.close(writer)
    assert code == 7, "the command must not inherit the lock, only its supervisor"
