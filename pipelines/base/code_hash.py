"""Hash the code that decides the bytes of a stage.

The table is `dvc.yaml`: the deps of a stage that are code. DVC re-runs a stage by it, a
training run is named by it, and unfinished work is resumed only while it is unchanged. One
test per stage proves that the table names everything that the stage imports.
"""

import hashlib
from collections.abc import Collection, Iterable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from ruamel.yaml import YAML

from pipelines.base.artifacts import sha256_file
from pipelines.base.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("enigma", "expectations", "pipelines")
# Templates decide the bytes of a page as modules do.
CODE_SUFFIXES = (".py", ".j2")
# Packages that also decide the bytes of a part.
VERSIONED = ("numpy", "pyarrow", "tokenizers")


def code_deps(stage: str, repository: Path = REPOSITORY) -> list[str]:
    """Read which files and folders of code a stage depends on.

    Args:
        stage: Its name in `dvc.yaml`.
        repository: The directory of `dvc.yaml`.

    Returns:
        Paths relative to the repository.

    Raises:
        UserError: If the code was installed without its repository.
    """
    path = repository / "dvc.yaml"
    if not path.is_file():
        raise UserError(
            f"expected dvc.yaml in {repository}, found none (it lists the code of every stage)",
            "install Enigma from its repository with `pip install --editable .`",
        )
    return [dep for dep in _deps(path)[stage] if dep.split("/")[0] in ROOMS]


@lru_cache
def _deps(path: Path) -> dict[str, list[str]]:
    graph = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return {name: stage["deps"] for name, stage in graph["stages"].items()}


def code_hash(stage: str, *, without: Collection[str] = (), repository: Path = REPOSITORY) -> str:
    """Hash the code that decides the bytes of a stage.

    Args:
        stage: Its name in `dvc.yaml`.
        without: Files and folders to leave out, relative to the repository.
        repository: The directory of `dvc.yaml`.

    Returns:
        64 hexadecimal digits.
    """
    files = {
        path.relative_to(repository).as_posix(): path
        for dep in code_deps(stage, repository)
        for path in _code_files(repository / dep)
    }
    left_out = {repository / name for name in without}
    return _hash_lines(
        f"{name} {sha256_file(path)}\n"
        for name, path in files.items()
        if left_out.isdisjoint({path, *path.parents})
    )


@lru_cache
def installed_code() -> str:
    """Hash the rooms and the packages that decide bytes, as of the first call.

    A long-lived worker keeps the code that it has loaded, even if the files change.

    Returns:
        64 hexadecimal digits.
    """
    files = [path for room in ROOMS for path in _code_files(REPOSITORY / room)]
    return _hash_lines(
        [
            *(f"{path.relative_to(REPOSITORY)} {sha256_file(path)}\n" for path in files),
            *(f"{name} {version(name)}\n" for name in VERSIONED),
        ]
    )


def _code_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in CODE_SUFFIXES)


def _hash_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
