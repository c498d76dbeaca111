"""A clone of the repository in which the whole pipeline has really run, made once."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.finished import adopt_store
from tests.support import REPOSITORY, change_params

# Every part real, each as small as its gates allow: the model must still beat the
# unigram baseline, or the promotion would be refused.
SMALL = {
    "promote.baseline": "unigram",
    "train.epochs": 1,
    "model.d": 64,
    "train.max_steps": 30,
    "train.learning_rate": 4.0e-3,
    "train.evaluate_every_steps": 15,
    "train.max_validation_sequences": 16,
    "evaluate.max_sequences": 48,
    "evaluate.generated_tokens": 16,
    "train_flow.train_states": 2048,
    "train_flow.validation_states": 512,
    "train_flow.passages": 128,
    "train_flow.mixture.components": 64,
    "train_flow.mixture.steps": 10,
    "train_flow.hidden_channels": 64,
    "train_flow.steps": 30,
    # With 256 the gate `samples` compares noise: an AUC of 0.628 with 0.626.
    "sample_flow.samples": 4096,
    "sample_flow.passages": 8,
}


LINKED = (".dvc/cache", ".git/objects", "data", "models")


@dataclass(frozen=True)
class Project:
    """A checkout with its own MLflow store, and how to run commands in it."""

    path: Path

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as a user with the virtual environment active would."""
        binaries = Path(sys.executable).parent
        environment = {
            **os.environ,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        }
        for name in ("MLFLOW_TRACKING_URI", "ENIGMA_RUNS_DIR"):
            environment.pop(name, None)
        run = subprocess.run(
            command,
            cwd=self.path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if check and run.returncode != 0:
            pytest.fail(f"{' '.join(command)} ended with {run.returncode}:\n{run.stdout[-6000:]}")
        return run

    def stages_run_by_repro(self) -> list[str]:
        """Run `dvc repro`; the names of the stages that it ran, in order."""
        output = self.run("dvc", "repro").stdout
        return [
            line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")
        ]

    def copy(self, destination: Path) -> "Project":
        """A second checkout that a test may change; large files are hard links."""
        shutil.copytree(self.path, destination, symlinks=True, copy_function=self._link_or_copy)
        return Project(destination)

    def _link_or_copy(self, source: str, target: str) -> None:
        # DVC replaces its files and git its objects; neither writes into one that is there.
        place = Path(source).relative_to(self.path)
        if any(place.is_relative_to(folder) for folder in LINKED):
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    def set(self, values: dict[str, Any]) -> None:
        """Change dotted names below the profile `sanguo`."""
        change_params(self.path / "params.yaml", values)


def replace(path: Path, content: bytes) -> None:
    """Write another file: the old one may be a link into DVC's cache."""
    path.unlink()
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    replace(path, path.read_bytes()[:-10])


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A fresh clone with small parameters; nothing has run in it."""
    path = tmp_path_factory.mktemp("project") / "enigma"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(path)], check=True)
    project = Project(path)
    project.set(SMALL)
    return project


@pytest.fixture(scope="session")
def finished(clone: Project) -> Project:
    """The clone after `dvc repro`, registration and promotion; tests only read it."""
    clone.run("dvc", "repro")
    clone.run("enigma", "register")
    clone.run("enigma", "promote")
    return clone


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project that a test may change."""
    copy = finished.copy(tmp_path / "enigma")
    adopt_store(copy.path)
    return copy
