"""A repository that was moved or copied: refused by name, and mended by the command it names."""

import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.base.errors import UserError
from pipelines.registry.evidence.stored import opened
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
    with pytest.raises(UserError, match="expected the files of enigma-lm/1"):
        find_version()  # those of the original are there, and are not the copy's
    registered_project.rename(moved.parent / "elsewhere")
    try:
        with pytest.raises(UserError, match="expected the files of enigma-lm/1") as gone:
            find_version()
        assert "enigma relocate" in gone.value.fix
        assert relocate() == (registered_project, moved)
        assert find_version().is_relative_to(moved)
    finally:
        (moved.parent / "elsewhere").rename(registered_project)
    assert load_champion().version == "1"
    assert promote(LM, dry_run=True).outcome == "dry run"
    version = connect().get_model_version(LM, "1")
    model = MlflowClient().get_logged_model(version.source.removeprefix("models:/"))
    assert model.artifact_location.startswith(moved.as_uri())
    assert relocate() == (moved, moved), "a second time changes nothing"


def test_artifacts_left_behind_are_named_and_nothing_changes(
    moved: Path, registered_project: Path
) -> None:
    for models in moved.glob("mlartifacts/models"):
        shutil.rmtree(models)
    before = (moved / "mlflow.db").read_bytes()
    with pytest.raises(UserError, match="files of every model beside the store") as refusal:
        relocate()
    assert (moved / "mlflow.db").read_bytes() == before
    assert "copy the whole directory mlartifacts/ from the old place" in refusal.value.fix
    shutil.copytree(registered_project / "mlartifacts", "mlartifacts", dirs_exist_ok=True)
    assert relocate() == (registered_project, moved)


def test_a_directory_without_a_store_is_refused_and_nothing_is_made(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    remedies = []
    for command in (relocate, connect):
        with pytest.raises(UserError, match="expected") as refusal:
            command()
        remedies.append(refusal.value.fix)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    connect()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(store)
    connect()
    assert relocate() == (store, store)
    assert remedies == [
        "run the command in the directory that has mlflow.db",
        "run the command from the top of the repository, or set MLFLOW_TRACKING_URI",
    ]


def find_version() -> Path:
    """Where `enigma verify enigma-lm/1` finds the version."""
    with opened(f"{LM}/1") as stored:
        return stored.directory


@pytest.mark.parametrize("content", [b"", b"no database" * 1000])
def test_a_damaged_store_is_named_and_a_backup_helps(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    damaged = tmp_path / "mlflow.db"
    damaged.write_bytes(content)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{damaged}")
    for command in (relocate, find_version):
        with pytest.raises(UserError, match=r"expected a store of MLflow in .*mlflow\.db") as error:
            command()
        assert "restore the file from a backup" in error.value.fix
    shutil.copy(store / "mlflow.db", damaged)
    assert find_version().is_relative_to(store)
