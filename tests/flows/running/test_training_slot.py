"""One training at a time on a machine, with real processes."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.running.training_slot import SLOT, training_slot

HOLD = """
import sys
from flows.running.training_slot import training_slot
with training_slot("train of wiki-zh", print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_the_second_waits_and_says_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    monkeypatch.setenv(SLOT, str(tmp_path / "slot"))
    said: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with training_slot("train of sanguo", said.append):
            entered.set()

    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.5)
        assert "train of wiki-zh" in said[0]
        assert str(first.pid) in said[0]
        if killed:
            first.kill()
        else:
            first.stdin.close()
        thread.join(20)
    assert entered.is_set()
    assert said[1:] == ["waiting is over"]
