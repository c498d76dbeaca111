"""A training step on a made-up GPU: nothing in it makes the host wait."""

import subprocess
import sys

import pytest

from tests.support import REPOSITORY

STEPS = ("plain", "checkpoint", "reversible", "lifting", "convolutions", "ngrams")
PLANTED = ("item", "bool", "nonzero", "host", "constant", "solve")


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What the steps print, by name; the device stays registered, so not in this process."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.training.step_on_fake_gpu"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return dict(line.split(" ", 1) for line in run.stdout.splitlines())


@pytest.mark.parametrize("name", STEPS)
def test_no_operation_of_a_step_reads_from_the_gpu(printed: dict[str, str], name: str) -> None:
    counts = list(map(int, printed[name].split()))
    assert len(counts) == 3, "forward, backward, update"
    assert min(counts) > 0


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_read_is_found(printed: dict[str, str], name: str) -> None:
    assert printed[f"planted-{name}"] == "host read"


def test_the_modes_launch_as_many_operations_as_they_compute(printed: dict[str, str]) -> None:
    counts = {name: list(map(int, printed[name].split())) for name in STEPS}
    assert counts["plain"][0] == counts["reversible"][0], "the forward pass is the same"
    assert counts["plain"][0] < counts["plain"][1]
    assert counts["plain"][1] < counts["checkpoint"][1] < 2.5 * counts["plain"][1]
    assert counts["reversible"][1] < 1.2 * counts["checkpoint"][1]
