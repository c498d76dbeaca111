"""`dvc.yaml` names all code that decides a stage, and no folder is crowded."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipelines.base.code_hash import code_deps
from tests.support import REPOSITORY

STAGES = YAML(typ="safe").load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
# What decides no byte of an output; params.py is a schema whose values DVC compares.
UNDECIDING = ("pipelines/base", "pipelines/runs", "pipelines/tracking", "pipelines/params.py")


def module_file(name: str) -> Path | None:
    """The file of a module of this repository, relative to it."""
    path = Path(*name.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if (REPOSITORY / file).is_file()), None)


def imported(file: Path) -> Iterator[Path]:
    """The modules that a file imports anywhere, or names in a string to start them."""
    for node in ast.walk(ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if node.value.startswith("pipelines.") else []
        yield from filter(None, map(module_file, names))


def closure(stage: str) -> set[Path]:
    """All files of this repository that a stage may run."""
    found: set[Path] = set()
    waiting = [Path("pipelines", f"{stage}.py")]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += imported(file)
    return found


def lies_in(file: Path, paths: tuple[str, ...]) -> bool:
    return any(file.is_relative_to(path) for path in paths)


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_what_the_stage_imports(stage: str) -> None:
    deps = tuple(code_deps(stage))
    files = {file for file in closure(stage) if file.name != "__init__.py"}
    missed = {file for file in files if not lies_in(file, (*deps, *UNDECIDING))}
    assert not missed
    idle = [dep for dep in deps if not any(lies_in(file, (dep,)) for file in files)]
    assert not idle, "the stage imports nothing of these"


def test_the_closure_follows_imports_in_functions_and_started_modules() -> None:
    files = {str(file) for file in closure("train")}
    assert {"pipelines/training/worker.py", "pipelines/training/muon.py"} <= files
    assert "pipelines/data/text/folding.py" in {str(file) for file in closure("decontaminate")}


def test_what_decides_no_byte_is_no_dep() -> None:
    for stage in STAGES:
        assert not [dep for dep in code_deps(stage) if lies_in(Path(dep), UNDECIDING)]


def test_the_top_of_pipelines_is_the_graph() -> None:
    modules = {path.stem for path in (REPOSITORY / "pipelines").glob("*.py")}
    assert modules == {"__init__", "params", *STAGES}


@pytest.mark.parametrize("room", ["enigma", "pipelines", "expectations", "flows", "benchmarks"])
def test_no_folder_is_crowded(room: str) -> None:
    for folder in [REPOSITORY / room, *(REPOSITORY / room).rglob("*/")]:
        modules = [path for path in folder.glob("*.py") if not path.stem.startswith("__")]
        assert len(modules) <= 15, f"{folder}: 15 modules at most, got {len(modules)}"
