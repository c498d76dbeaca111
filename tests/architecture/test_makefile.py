"""`make lock` writes the lock whole or not at all, and `make clean` spares runs in progress."""

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LOCK = "# A comment.\ntorch==1.0.0\n"


@pytest.mark.parametrize(
    ("pip", "lock"),
    [
        ("echo torch==2.0.0+cpu", "# A comment.\ntorch==2.0.0\n"),
        ("echo torch==2.0.0; exit 1", LOCK),
    ],
    ids=["pip works", "pip fails"],
)
def test_a_lock_is_written_whole_or_not_at_all(tmp_path: Path, pip: str, lock: str) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in ("pyproject.toml", "requirements-data.txt"):
        (tmp_path / name).touch()
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(LOCK, encoding="utf-8")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{pip}\n", encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / ".venv" / "installed").touch()
    done = subprocess.run(
        ["make", "lock"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert constraints.read_text(encoding="utf-8") == lock
    assert (done.returncode == 0) == (lock != LOCK), done.stderr


def test_a_clean_removes_only_what_the_cache_has(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    made = ("data", "models", "reports", "runs")
    for name in made:
        (tmp_path / name / "sanguo").mkdir(parents=True)
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert [name for name in made if (tmp_path / name).exists()] == ["runs"]
