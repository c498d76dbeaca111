"""A small real repository with DVC, for tests of the checkout of a flow run."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import REPOSITORY


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    command = ["git", *identity, *arguments]
    return subprocess.run(
        command, cwd=directory, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template")
    for name in ("params.yaml", ".gitignore", ".dvcignore"):
        shutil.copyfile(REPOSITORY / name, path / name)
    (path / "stage.py").write_text("committed\n")
    shutil.copytree(REPOSITORY / "sources", path / "sources")
    git(path, "init", "--quiet")
    subprocess.run(["dvc", "init", "--quiet"], cwd=path, check=True)
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message", "all")
    return path


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "仓库 with space")
