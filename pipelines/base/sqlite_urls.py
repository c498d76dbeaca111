"""Paths of SQLite files as addresses, and back.

SQLAlchemy, and so MLflow and Prefect, reads `?` as the start of options. Below 2.1 only SQLite
itself reads `%41` as a letter, in an address of its own kind (`file:`).
"""

from pathlib import Path
from urllib.parse import quote, unquote

SCHEME = "sqlite"
SPECIAL = "%?#"
SQLITES_OWN = "file:"


def sqlite_url(path: Path, scheme: str = SCHEME) -> str:
    """Write the address of a SQLite file.

    Example:
        >>> sqlite_url(Path("/home/li/曹操/mlflow.db"))
        'sqlite:////home/li/曹操/mlflow.db'
        >>> sqlite_path(sqlite_url(Path("/home/li/100% 曹?/mlflow.db")))
        PosixPath('/home/li/100% 曹?/mlflow.db')
    """
    text = str(path)
    if not any(character in text for character in SPECIAL):
        return f"{scheme}:///{text}"
    return f"{scheme}:///{SQLITES_OWN}{quote(text)}?uri=true"


def sqlite_path(url: str) -> Path | None:
    """Read the path in the address of a SQLite file; None for another kind of address.

    Example:
        >>> sqlite_path("sqlite+aiosqlite:////home/li/prefect.db?timeout=60")
        PosixPath('/home/li/prefect.db')
        >>> sqlite_path("http://127.0.0.1:5000")
    """
    scheme, _, rest = url.partition(":///")
    if scheme.split("+")[0] != SCHEME:
        return None
    path = rest.partition("?")[0]
    own = path.startswith(SQLITES_OWN)
    return Path(unquote(path.removeprefix(SQLITES_OWN)) if own else path)
