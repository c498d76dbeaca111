"""The import contracts of pyproject.toml hold, and each of them refuses what it is there for."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import REPOSITORY

ROOMS = ("enigma", "pipelines", "expectations", "flows")
# A forbidden import for every package: written into a new module, which no list can know.
PLANTS = {
    "enigma": "pipelines.base.errors",
    "enigma.attention": "transformers",
    "enigma.bijections": "transformers",
    "enigma.couplings": "pandas",
    "enigma.density": "pandas",
    "enigma.language_model": "transformers",
    "enigma.language_model.memory": "transformers",
    "enigma.layers": "mlflow",
    "enigma.reversible": "transformers",
    "expectations": "pipelines.base.errors",
    "flows": "torch",
    "flows.running": "pipelines.runs.directory",
    "pipelines.base": "pipelines.params",
    "pipelines.tracking": "pipelines.params",
    "pipelines.data": "pipelines.training.muon",
    "pipelines.data.text": "pipelines.data.cleaning.part",
    "pipelines.data.wiki": "pipelines.data.cleaning.part",
    "pipelines.data.sources": "pipelines.data.cleaning.part",
    "pipelines.data.cleaning": "pipelines.data.tokenizer.packing",
    "pipelines.data.tokenizer": "pipelines.data.overlap.exact",
    "pipelines.data.overlap": "pipelines.data.audit.evidence",
    "pipelines.data.audit": "pipelines.language_model.scoring",
    "pipelines.data.audit.keys": "pipelines.data.text.folding",
    "pipelines.data.audit.windows": "pipelines.data.overlap.exact",
    "pipelines.language_model": "mlflow",
    "pipelines.runs": "prefect",
    "pipelines.training": "pipelines.flow.fit",
    "pipelines.flow": "great_expectations",
    "pipelines.flow.documents": "great_expectations",
    "pipelines.registry": "pipelines.sample_flow",
    "pipelines.registry.evidence": "mlflow",
    "pipelines.registry.standards": "mlflow",
    "pipelines.cli": "flows.train",
    "pipelines.cli.scores": "flows.train",
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the rooms and their contracts."""
    for room in ROOMS:
        for source in (REPOSITORY / room).rglob("*.py"):
            copy = tmp_path / source.relative_to(REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((REPOSITORY / "pyproject.toml").read_bytes())
    return tmp_path


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=directory,
        env={"PYTHONPATH": str(directory), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_contracts_hold(house: Path) -> None:
    run = lint_imports(house)
    assert run.returncode == 0, run.stdout


def test_a_forbidden_import_is_refused_in_every_room(house: Path) -> None:
    packages = {
        ".".join(path.parent.relative_to(house).parts) for path in house.rglob("__init__.py")
    }
    assert packages - {"pipelines"} <= set(PLANTS), "plant an import in the new package as well"
    expected = []
    for place, target in PLANTS.items():
        path = house.joinpath(*place.split("."))
        module, file = (
            (f"{place}.planted", path / "planted.py")
            if path.is_dir()
            else (place, path.with_suffix(".py"))
        )
        with file.open("a") as stream:
            stream.write(f"\nimport {target}\n")
        expected.append(f"{module} -> {target}")
    run = lint_imports(house)
    assert run.returncode != 0
    missed = [line for line in expected if line not in run.stdout]
    assert not missed, run.stdout


def test_a_module_without_a_layer_is_refused(house: Path) -> None:
    for package in ("pipelines", "pipelines/data"):
        (house / package / "stray.py").write_text("")
    run = lint_imports(house)
    assert run.returncode != 0
    assert "pipelines.stray" in run.stdout
    assert "pipelines.data.stray" in run.stdout
