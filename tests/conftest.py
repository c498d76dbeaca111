"""Fixtures that every kind of test shares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from pipelines.stage import QUIET_ENVIRONMENT
from tests.support import REPOSITORY, WIKI_SAMPLE, change_params, make_tiny_shards

SetParams = Callable[..., Path]

# A time limit for an example says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("enigma", deadline=None)
hypothesis.settings.load_profile("enigma")


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test phones home, and ranks do not fight over two cores."""
    for name, value in QUIET_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the shipped `params.yaml` and its own MLflow store."""
    directory = tmp_path / "workspace"
    directory.mkdir()
    (directory / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    monkeypatch.chdir(directory)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{directory}/mlflow.db")
    return directory


@pytest.fixture
def set_params(workspace: Path) -> SetParams:
    """Change values in the workspace's `params.yaml`.

    Call it as `set_params({"train.max_steps": 5})`: dotted names below the
    profile `sanguo`, or from the top with a leading dot (".profile").
    """

    def change(values: dict[str, Any]) -> Path:
        path = workspace / "params.yaml"
        change_params(path, values)
        return path

    return change


@pytest.fixture
def shards(workspace: Path) -> Path:
    """Tiny final shards and their certificate, in the workspace."""
    return make_tiny_shards()


@pytest.fixture
def wiki_sample() -> Path:
    """The development sample of Chinese Wikipedia; skips where it is not at hand."""
    if not WIKI_SAMPLE.is_file():
        pytest.skip("the Wikipedia sample is not on this machine")
    return WIKI_SAMPLE
