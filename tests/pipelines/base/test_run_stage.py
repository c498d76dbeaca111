"""What every stage begins with: a quiet environment, patient threads, errors in two lines."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipelines.base.errors import UserError
from pipelines.base.run_stage import QUIET_ENVIRONMENT, progress, run_stage


@pytest.fixture(autouse=True)
def _warnings_go_where_they_went() -> Iterator[None]:
    yield
    logging.captureWarnings(capture=False)


def test_openmp_is_told_how_long_to_spin() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    environment["OMP_DISPLAY_ENV"] = "verbose"
    # The flow's stages import torch before `run_stage` is called.
    command = [sys.executable, "-c", "import pipelines.base.errors, torch"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "GOMP_SPINCOUNT = '10000'" in done.stderr


def test_a_user_error_ends_in_two_lines_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("expected bread, got stone", "bake")

    with pytest.raises(SystemExit) as ended:
        run_stage(main)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: expected bread, got stone\n  to fix this: bake\n"


def test_ctrl_c_says_that_the_work_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_stage(main)
    assert ended.value.code == 130
    assert "to resume" in capsys.readouterr().err


def test_analytics_are_off_unless_the_user_turned_them_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "false")
    run_stage(lambda: None)
    assert os.environ["DO_NOT_TRACK"] == "false"
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_progress_gives_every_item() -> None:
    assert list(progress(iter("abc"), total=3, unit="letter", label="test")) == ["a", "b", "c"]
