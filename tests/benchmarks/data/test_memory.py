"""The memory of a stage is its own, not that of the process that measures it."""

import resource
import sys
from pathlib import Path

import pytest

from benchmarks.data.memory import measure


def test_a_peak_that_may_be_the_parents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected a peak above the"):
        measure([sys.executable, "-c", "pass"], tmp_path)


def test_a_larger_child_is_measured(tmp_path: Path) -> None:
    size = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) + (64 << 20)
    used = measure([sys.executable, "-c", f"b'x' * {size}"], tmp_path)
    assert size < used.peak_bytes < size + (64 << 20)


def test_a_failure_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        measure([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path)
