"""The code that a stage runs, as one hash: half-made work of other code is not gone on with."""

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from pipelines.artifacts import sha256_file

# Not by parsing: that takes longer than many a stage.
IMPORT = re.compile(r"^[ ]*from pipelines(?:\.(\w+)| import (\([^)]*\)|[^\n]*))", re.MULTILINE)
WORD = re.compile(r"\w+")
# What else the bytes of a shard come from.
VERSIONED = ("numpy", "pyarrow", "tokenizers")


def stage_code(module: Path) -> str:
    """Hash a module and every module of `pipelines` that it imports, however deep.

    Args:
        module: The file of a stage.

    Returns:
        64 hexadecimal digits.
    """
    here = Path(__file__).parent
    found = {module}
    waiting = [module]
    while waiting:
        new = _imports(waiting.pop(), here) - found
        found |= new
        waiting += new
    return _hash_lines(f"{path.name} {sha256_file(path)}\n" for path in found)


@lru_cache
def installed_code() -> str:
    """Hash this room and the packages that decide bytes, as they were when this was first asked.

    A worker that lives long keeps the code that it has loaded, whatever the files say since.

    Returns:
        64 hexadecimal digits.
    """
    modules = Path(__file__).parent.glob("*.py")
    return _hash_lines(
        [
            *(f"{path.name} {sha256_file(path)}\n" for path in modules),
            *(f"{name} {version(name)}\n" for name in VERSIONED),
        ]
    )


def _hash_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


@lru_cache
def _imports(module: Path, here: Path) -> frozenset[Path]:
    """The files of this room that a file imports, at its top or inside of functions."""
    names: set[str] = set()
    for inside, listed in IMPORT.findall(module.read_text(encoding="utf-8")):
        names |= {inside} if inside else set(WORD.findall(listed))
    return frozenset(path for name in names if (path := here / f"{name}.py").is_file())
