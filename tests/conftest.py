"""Fixtures that tests of every kind share."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from pipelines import count_ngrams
from pipelines.base.run_stage import QUIET_ENVIRONMENT
from pipelines.base.workspace import Workspace
from pipelines.params import load_params
from pipelines.runs.directory import Outcome, RunConfig, RunDirectory
from pipelines.runs.training_slot import SLOT
from pipelines.train import prepare
from tests.support import REPOSITORY, TINY_RUN, WIKI_SAMPLE, change_params, make_tiny_shards

SetParams = Callable[..., Path]


# A deadline per example would measure how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("enigma", deadline=None)
hypothesis.settings.load_profile("enigma")


def pytest_configure() -> None:
    """Use one thread per process, here and in what the tests start, before torch is imported.

    Signing keys of the tests are in a directory of their own.

    Otherwise two pytest workers on two cores each run two threads that wait for one
    another: fits of a small flow took three times as long.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["XDG_CONFIG_HOME"] = f"{tempfile.gettempdir()}/enigma-tests-{os.getuid()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files that take longest first: whole files go to workers, in this order.

    A long file that starts late runs alone at the end. A file tells how long it takes by its
    marks: a timeout of its own, then `slow`.
    """
    weights: dict[Path, tuple[float, bool]] = {}
    for item in items:
        timeout = item.get_closest_marker("timeout")
        weight = (timeout.args[0] if timeout else 0.0, item.get_closest_marker("slow") is not None)
        weights[item.path] = max(weight, weights.get(item.path, weight))
    items.sort(key=lambda item: weights[item.path], reverse=True)


@pytest.fixture(scope="session", autouse=True)
def quiet_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Turn analytics off everywhere, and take no part in the machine's training slot.

    Of a whole session, or the fixtures of modules would train in the slot of the machine, and
    wait there for whatever else trains: a pipeline that another worker runs, for example.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET_ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv(SLOT, str(tmp_path_factory.getbasetemp() / "training.lock"))
        yield


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the shipped `params.yaml` and its own MLflow store."""
    directory = tmp_path / "workspace"
    directory.mkdir()
    (directory / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    monkeypatch.chdir(directory)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{directory}/mlflow.db")
    return directory


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store with tables but no runs; creating the tables takes a second."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tables(workspace: Path, migrated_store: Path) -> None:
    """Give the workspace an MLflow store whose tables exist."""
    shutil.copy(migrated_store, workspace / "mlflow.db")


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


class OneRank:
    """Trains as the only rank, in this process, without torchrun and MLflow."""

    def __init__(self, run: RunDirectory, config: RunConfig) -> None:
        self.run = run
        self.config = config

    def train(self) -> Outcome:
        from pipelines.training.worker import train_rank

        return train_rank(self.run, self.config, rank=0, world_size=1)


@pytest.fixture
def one_rank(shards: Path, set_params: Any) -> Iterator[Any]:
    """Call it as `one_rank({"train.max_steps": 3})`: a rank that is ready to train."""
    before = signal.getsignal(signal.SIGTERM)
    with ExitStack() as held:

        def make(values: dict[str, Any]) -> OneRank:
            set_params({**TINY_RUN, **values})
            count_ngrams.main()
            run, config = prepare(Workspace("sanguo"), load_params().profile)
            if not run.path.exists():
                held.enter_context(run.locked())
            return OneRank(run, config)

        yield make
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def wiki_sample() -> Path:
    """The development sample of Chinese Wikipedia; skips where it is missing."""
    if not WIKI_SAMPLE.is_file():
        pytest.skip("the Wikipedia sample is not on this machine")
    return WIKI_SAMPLE
