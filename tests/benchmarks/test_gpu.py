"""The benchmark for a GPU works on a CPU, and a section that fails costs no other."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.gpu import SECTIONS, run_apart
from benchmarks.record import row

if TYPE_CHECKING:
    from benchmarks.gpu_sections import Machine, Rows

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
"""Not from `tests.support`: the processes of planted sections import this file anew."""


def sound(machine: "Machine") -> "Rows":
    return [row("sound", 1.0, machine.device)]


def raises(machine: "Machine") -> "Rows":
    raise ValueError("out of memory")


def dies(machine: "Machine") -> "Rows":
    os._exit(3)


def hangs(machine: "Machine") -> "Rows":
    time.sleep(60)
    return []


def test_a_section_that_fails_says_so_in_the_table() -> None:
    (found,) = run_apart(sound, "sound", 60, tiny=True)
    assert (found["name"], found["unit"]) == ("sound", "cpu")
    for section, words in (
        (raises, "ValueError: out of memory"),
        (dies, "died"),
        (hangs, "no result"),
    ):
        (found,) = run_apart(section, "planted", 1 if section is hangs else 60, tiny=True)
        assert found["name"].startswith("planted: FAILED")
        assert words in found["name"]
        assert found["met"] is False


def test_every_section_runs_on_a_cpu() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--tiny"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    rows = json.loads(run.stdout.splitlines()[-1])
    assert [each["name"] for each in rows if "FAILED" in each["name"]] == []
    missed = [each["name"] for each in rows if each["met"] is False]
    assert missed == []
    assert len(rows) > 2 * len(SECTIONS)


@pytest.mark.parametrize(("words", "problem"), [(["nothing"], "sections among"), ([], "CUDA GPU")])
def test_bad_calls_are_refused(words: list[str], problem: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *words],
        cwd=REPOSITORY,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert problem in run.stderr
    assert "Traceback" not in run.stderr
