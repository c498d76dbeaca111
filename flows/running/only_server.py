"""One `make serve` per Prefect database: a second one would judge the runs of the first."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipelines.base.errors import UserError
from pipelines.base.locks import held_lock, read_holder, user_directory
from pipelines.base.sqlite_urls import sqlite_path, sqlite_url

DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
OLD_DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"


def database_url(environment: Mapping[str, str], home: Path) -> str:
    """Return the database of the Prefect server.

    Args:
        environment: Where the user may have named one.
        home: Prefect's directory, which has a SQLite file by default.
    """
    default = sqlite_url(home / "prefect.db", "sqlite+aiosqlite")
    return environment.get(DATABASE) or environment.get(OLD_DATABASE) or default


def lock_of(database: str) -> Path:
    """Return the lock of a database.

    Returns:
        A file beside a SQLite database; for a database server one file per address, in the
        directory that all sessions of this user share.
    """
    if path := sqlite_path(database):
        return path.with_name(f"{path.name}.serve.lock")
    digest = hashlib.sha256(database.encode()).hexdigest()[:16]
    return user_directory() / f"serve-{digest}.lock"


@contextmanager
def only_server(database: str, say: Callable[[str], None]) -> Iterator[int]:
    """Hold the lock of a database.

    Args:
        database: Its address.
        say: Receives messages for a person.

    Yields:
        The file descriptor; the services keep it open.

    Raises:
        UserError: If another server of the database runs. After one that was killed, this
            waits for the end of its services.
    """
    path = lock_of(database)

    def refuse(shown: str) -> None:
        holder = read_holder(path)
        if holder is not None and holder.state() == "dead":
            say(f"process {shown} was killed; waiting until the last of its services has ended")
            return
        raise UserError(
            f"expected no other server of this Prefect database, but process {shown} is one",
            "use that server (another port would not make a second one), or stop it first",
        )

    with held_lock(path, refuse, task="make serve") as lock:
        yield lock
