"""Write the code of the model next to its weights, for `trust_remote_code=True`.

transformers copies the files beside a model into a package of its own, without folders, and
follows relative imports only. So every module of `enigma` that the model needs is written as one
file, and its imports of other modules become relative.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

__all__ = ["write_remote_code"]

_ROOTS = ("enigma.modeling_enigma", "enigma.configuration_enigma")
_IMPORT = re.compile(r"^(\s*)from (enigma(?:\.\w+)+) import", re.MULTILINE)


def write_remote_code(directory: Path) -> list[Path]:
    """Write what the model needs of this package as flat files.

    Args:
        directory: holds the saved model; files of earlier calls are replaced.

    Returns:
        The files, `modeling_enigma.py` and `configuration_enigma.py` among them. None if this code
        is itself such a file: transformers then copies all of them.
    """
    if not __name__.startswith("enigma."):
        return []
    files: dict[str, Path] = {}
    waiting = list(_ROOTS)
    while waiting:
        module = waiting.pop()
        if module in files:
            continue
        source = _source(module)
        waiting += [match[2] for match in _IMPORT.finditer(source)]
        files[module] = directory / f"{_flat(module)}.py"
        relative = _IMPORT.sub(lambda match: f"{match[1]}from .{_flat(match[2])} import", source)
        files[module].write_text(relative, encoding="utf-8")
    return sorted(files.values())


def _source(module: str) -> str:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"expected the source of {module}, found none")
    return Path(spec.origin).read_text(encoding="utf-8")


def _flat(module: str) -> str:
    """Return the name of a module as a file; the two that transformers looks for keep theirs."""
    name = module.removeprefix("enigma.")
    return name if module in _ROOTS else f"enigma_{name.replace('.', '_')}"
