"""A lock that names its holder, refuses or waits, and survives in a child."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.base.locks import held_lock

# Takes the lock, hands it to a child and dies.
PARENT = """
import os, subprocess, sys
from pathlib import Path
from pipelines.base.locks import held_lock
with held_lock(Path(sys.argv[1]), print) as lock:
    child = subprocess.Popen(["sleep", "60"], pass_fds=[lock], stdout=subprocess.DEVNULL)
    print(os.getpid(), child.pid, flush=True)
    os._exit(0)
"""


class TakenError(Exception):
    """What the test raises where a lock is taken."""


def refuse(holder: str) -> None:
    raise TakenError(holder)


def test_a_taken_lock_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with (
        held_lock(path, refuse),
        pytest.raises(TakenError, match=rf"^{os.getpid()} "),
        held_lock(path, refuse),
    ):
        pass
    with held_lock(path, refuse):
        pass


def test_a_child_keeps_the_lock_of_a_dead_parent(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    parent = subprocess.run(
        [sys.executable, "-c", PARENT, path], stdout=subprocess.PIPE, text=True, check=True
    )
    holder, child = map(int, parent.stdout.split())
    try:
        with pytest.raises(TakenError, match=f"^{holder} "), held_lock(path, refuse):
            pass
        waits = []
        with held_lock(path, lambda text: (waits.append(text), os.kill(child, 9))):
            assert waits
    finally:
        subprocess.run(["kill", "-9", str(child)], check=False, stderr=subprocess.DEVNULL)
