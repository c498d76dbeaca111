"""The monitor reads a run's files alone, and says what it does not know."""

import io
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.base.errors import UserError
from pipelines.base.locks import Holder, boot_id
from pipelines.cli.monitor import view
from pipelines.runs.directory import Outcome
from pipelines.runs.status import Gpu, newest_run, read_gpus, read_status

COMMAND = "from pipelines.cli.commands import main; main()"


def text_of(path: Path, gpus: Any = "no NVIDIA GPU") -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(view(read_status(path), gpus, "50 % of 2 cores"))
    return console.export_text()


def test_a_run_is_shown_from_its_files(one_rank: Any) -> None:
    rank = one_rank({})
    rank.run.write_config(rank.config)
    assert "none yet" in text_of(rank.run.path), "a run that has not started"
    rank.train()
    shown = text_of(rank.run.path)
    assert "running" in shown
    assert "6 of 6" in shown
    assert "step 6, " in shown
    for name in ("perplexity", "tokens/s", "waiting for data", "time left", "no NVIDIA GPU"):
        assert name in shown
    assert "█" in shown

    gone = Holder(2**22 + 1, socket.gethostname(), boot_id(), "1")
    (rank.run.path / "lock").write_text(str(gone))
    assert "stopped: its launcher was killed" in text_of(rank.run.path)
    rank.run.write_outcome(Outcome("failed", 6, "the loss exploded", "fix it"))
    assert "failed at step 6: the loss exploded" in text_of(rank.run.path)


def test_a_gpu_is_shown_with_use_memory_and_temperature(one_rank: Any) -> None:
    rank = one_rank({})
    rank.run.write_config(rank.config)
    shown = text_of(rank.run.path, [Gpu("NVIDIA GeForce RTX 4090", 97, 20480.0, 24564.0, 71)])
    for word in ("RTX 4090", "97 %", "20,480 of 24,564 MiB", "71 C"):
        assert word in shown


def test_a_machine_without_a_gpu_says_so() -> None:
    gpus = read_gpus()
    assert isinstance(gpus, list) or gpus.startswith("no NVIDIA GPU (")


def test_a_long_reason_with_brackets_is_shown_whole(one_rank: Any) -> None:
    rank = one_rank({})
    rank.run.write_config(rank.config)
    words = [f"word{number}" for number in range(30)]
    rank.run.write_outcome(Outcome("failed", 6, f"expected [/x] got [b] {' '.join(words)}", "fix"))
    shown = text_of(rank.run.path)
    assert "failed at step 6: expected [/x] got [b]" in shown
    for word in words:
        assert f"{word} " in shown


def test_once_prints_the_newest_run_and_ends(one_rank: Any) -> None:
    rank = one_rank({})
    rank.run.write_config(rank.config)
    rank.train()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "monitor", "--once"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rank.run.path.name in done.stdout
    assert newest_run(Path("runs")) == rank.run.path


def test_without_a_run_the_command_says_how_to_start_one(workspace: Path) -> None:
    with pytest.raises(UserError, match="expected a training run in runs"):
        newest_run(Path("runs"))
