"""One training at a time on a machine, with real processes."""

import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipelines.runs.training_slot import SLOT, slot_path, training_slot

HOLD = """
import sys
from pipelines.runs.training_slot import training_slot
with training_slot("train of wiki-zh"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_the_second_waits_and_says_for_what(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    killed: bool,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv(SLOT, str(tmp_path / "slot"))
    entered = threading.Event()

    def second() -> None:
        with training_slot("train of sanguo"):
            entered.set()

    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.5)
        assert "train of wiki-zh" in caplog.text
        assert str(first.pid) in caplog.text
        if killed:
            first.kill()
        else:
            first.stdin.close()
        thread.join(20)
    assert entered.is_set()
    assert caplog.messages[1:] == ["waiting is over"]


def test_there_is_one_slot_whatever_a_session_takes_for_its_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SLOT)
    found = set()
    for directory in ("a", "b"):
        for name in ("TMPDIR", "XDG_RUNTIME_DIR", "HOME"):
            monkeypatch.setenv(name, str(tmp_path / directory))
        found.add(slot_path())
    assert len(found) == 1
