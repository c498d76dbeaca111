"""The code that a stage runs, as one hash: half-made work of other code is not gone on with."""

import ast
import hashlib
from pathlib import Path

from pipelines.artifacts import sha256_file


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
    lines = sorted(f"{path.name} {sha256_file(path)}\n" for path in found)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _imports(module: Path, here: Path) -> set[Path]:
    """The files of this room that a file imports, at its top or inside of functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == here.name:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{here.name}."):
            names.add((node.module or "").split(".")[1])
    return {path for name in names if (path := here / f"{name}.py").is_file()}
