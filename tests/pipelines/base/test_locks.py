"""A lock that names its holder, refuses or waits, survives in a child, and follows no link."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.base import locks
from pipelines.base.errors import UserError
from pipelines.base.locks import held_lock, read_holder, start_tick, user_directory

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


@pytest.mark.parametrize("lay", [Path.symlink_to, Path.hardlink_to])
def test_a_link_in_place_of_a_lock_is_refused_and_its_target_stays(tmp_path: Path, lay) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lay(tmp_path / "lock", victim)
    with (
        pytest.raises(UserError, match="expected a lock file of this user") as refusal,
        held_lock(tmp_path / "lock", refuse),
    ):
        pass
    assert victim.read_text() == "precious"
    assert "remove it" in refusal.value.fix
    (tmp_path / "lock").unlink()
    with held_lock(tmp_path / "lock", refuse):
        pass
    assert victim.read_text() == "precious"


def test_a_pipe_in_place_of_a_lock_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(UserError), held_lock(tmp_path / "lock", refuse):
        pass


def test_who_waits_for_a_lock_that_is_removed_gets_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, path], stdout=subprocess.PIPE, text=True
    ) as parent:
        child = int(parent.communicate()[0].split()[1])
    before = path.stat().st_ino

    def remove(_holder: str) -> None:
        path.rename(tmp_path / "old")
        os.kill(child, signal.SIGKILL)

    with held_lock(path, remove) as lock:
        assert os.path.samestat(path.stat(), os.fstat(lock))
        assert path.stat().st_ino != before


def test_a_process_is_known_whatever_the_clock_says(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_lock(path, refuse, task="train\nof sanguo"):
        os.utime(path, (0, 0))
        holder = read_holder(path)
        assert holder.process_id == os.getpid()
        assert holder.shown() == f"{os.getpid()} {socket.gethostname()} train of sanguo"
        assert holder.state() == "alive"
    # Its number was given to a later process; it is another machine; it was another boot.
    assert replace(holder, tick="1").state() == "dead"
    assert replace(holder, host="another-node").state() == "elsewhere"
    assert replace(holder, boot="0").state() == "elsewhere"


def test_a_zombie_does_not_run() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert start_tick(ended.pid) is None


def test_half_a_text_names_nobody(tmp_path: Path) -> None:
    assert read_holder(tmp_path / "none") is None
    (tmp_path / "lock").write_text("12 some")
    assert read_holder(tmp_path / "lock") is None


def test_the_directory_of_a_user_is_theirs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SHARED", tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "elsewhere"))
    tempfile.tempdir = None
    path = user_directory()
    assert path == user_directory() == tmp_path / f"enigma-{os.geteuid()}"
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o777)
    with pytest.raises(UserError, match="mode 777"):
        user_directory()
    path.rmdir()
    path.symlink_to(tmp_path)
    with pytest.raises(UserError, match="expected a directory") as refusal:
        user_directory()
    assert "remove it" in refusal.value.fix
    path.unlink()
    assert user_directory() == path
