"""A repository that was moved or copied: refused by name, and mended by the command it names."""

import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.base.errors import UserError
from pipelines.registry.names import LM
from pipelines.registry.promote import promote
from pipelines.registry.versions import load_champion
from pipelines.tracking.relocate import relocate
from pipelines.tracking.store import connect


@pytest.fixture
def moved(registered_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the registered project, under a name that must be escaped in an address."""
    there = shutil.copytree(registered_project, tmp_path / "new name %41 #1?")
    monkeypatch.chdir(there)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return there


def test_a_moved_store_is_refused_until_it_names_its_own_artifacts(
    moved: Path, registered_project: Path
) -> None:
    with pytest.raises(UserError, match="moved or copied") as refusal:
        load_champion()
    assert "enigma relocate" in refusal.value.fix
    assert relocate() == (registered_project, moved)
    assert load_champion().version == "1"
    assert promote(LM, dry_run=True).outcome == "dry run"
    version = connect().get_model_version(LM, "1")
    model = MlflowClient().get_logged_model(version.source.removeprefix("models:/"))
    assert model.artifact_location.startswith(moved.as_uri())
    assert relocate() == (moved, moved), "a second time changes nothing"


def test_artifacts_left_behind_are_named_and_nothing_changes(moved: Path) -> None:
    for models in moved.glob("mlartifacts/models"):
        shutil.rmtree(models)
    before = (moved / "mlflow.db").read_bytes()
    with pytest.raises(UserError, match="files of every model beside the store"):
        relocate()
    assert (moved / "mlflow.db").read_bytes() == before


def test_a_directory_without_a_store_is_refused_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for command in (relocate, connect):
        with pytest.raises(UserError, match="expected"):
            command()
    assert not list(tmp_path.iterdir())
