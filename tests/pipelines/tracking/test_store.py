"""Opening the MLflow store: five concurrent first users, damage, addresses that do not answer."""

import os
import re
import shutil
from multiprocessing.managers import ListProxy
from pathlib import Path
from threading import Barrier

import pytest
from mlflow.tracking import MlflowClient

from pipelines.base.errors import UserError
from pipelines.tracking.store import (
    EXPERIMENT,
    connect,
    initialise_store,
    tracking_directory,
    tracking_uri,
)
from tests.support import fresh_processes


def test_a_deleted_experiment_is_restored(workspace: Path, caplog) -> None:
    client = MlflowClient(tracking_uri())
    experiment = initialise_store()
    client.delete_experiment(experiment)
    assert initialise_store() == experiment
    assert client.get_experiment(experiment).lifecycle_stage == "active"
    assert "had been deleted" in caplog.text


def test_a_directory_may_have_any_name_and_the_store_opens_for_training(
    tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "a?b#c%41 曹"
    directory.mkdir()
    shutil.copy(migrated_store, directory / "mlflow.db")
    monkeypatch.chdir(directory)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (directory / "params.yaml").touch()
    before = (directory / "mlflow.db").read_bytes()
    client = connect()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment.tags == {"mlflow.experimentKind": "custom_model_development"}
    run = client.create_run(experiment.experiment_id)
    client.log_text(run.info.run_id, "text", "file.txt")
    assert (directory / "mlflow.db").read_bytes() != before
    assert len(list(directory.glob("mlartifacts/**/file.txt"))) == 1
    assert list(tmp_path.iterdir()) == [directory], "no file of half the name"
    assert tracking_directory() == directory


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("store", "remedy"),
    [
        ("http://127.0.0.1:9", "start its server"),
        ("http://[::1", "start its server"),
        ("foo://bar", "restore its file from a backup"),
        ("sqlite:////proc/no/x.db", "restore its file from a backup"),
        ("sqlite:////proc", "restore its file from a backup"),
        ("mysql://127.0.0.1/x", "install the driver of this database"),
    ],
)
def test_a_store_that_cannot_be_used_is_named(workspace, monkeypatch, store, remedy) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=f"MLflow store at {re.escape(store)}") as refusal:
        connect()
    assert refusal.value.fix.startswith((remedy, f"start the database, or {remedy}"))
    assert "(without it: mlflow.db in this directory)" in refusal.value.fix
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    connect()


def test_a_damaged_store_is_named_and_a_backup_helps(workspace: Path, migrated_store: Path) -> None:
    (workspace / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="usable MLflow store") as refusal:
        connect()
    assert "restore its file from a backup" in refusal.value.fix
    shutil.copy(migrated_store, workspace / "mlflow.db")
    connect()


def be_a_first_user(start: Barrier, experiments: "ListProxy[str]", store: str) -> None:
    # A fork server has the environment of the test that started it.
    os.environ["MLFLOW_TRACKING_URI"] = store
    start.wait()
    experiments.append(initialise_store())


def test_five_first_users_of_a_cold_store_find_one_experiment(workspace: Path) -> None:
    context = fresh_processes()
    with context.Manager() as manager:
        experiments, start = manager.list(), manager.Barrier(5)
        users = [
            context.Process(target=be_a_first_user, args=(start, experiments, tracking_uri()))
            for _ in range(5)
        ]
        for user in users:
            user.start()
        for user in users:
            user.join(240)
        found = list(experiments)
    assert [user.exitcode for user in users] == [0] * 5
    [experiment] = [e for e in connect().search_experiments() if e.name == EXPERIMENT]
    assert found == [experiment.experiment_id] * 5
