"""The MLflow store: where it is, and how it is opened."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from pipelines.base.errors import UserError
from pipelines.base.locks import held_lock
from pipelines.base.sqlite_urls import sqlite_path, sqlite_url
from pipelines.tracking.uris import hide_password, shown_uri

EXPERIMENT = "enigma"
# The UI opens the experiment with its runs and charts, not with traces of a chat.
MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
ARTIFACTS = "mlartifacts"
# A command for which a user is waiting gives up within seconds.
COMMAND_ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
LOCK_PATIENCE_S = 120

logger = logging.getLogger(__name__)


def tracking_uri() -> str:
    """Find out where runs and models are recorded.

    Returns:
        `MLFLOW_TRACKING_URI`, or a SQLite file `mlflow.db` in the working directory.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(Path.cwd() / "mlflow.db")


def database_file(uri: str) -> Path | None:
    """Return the file of a SQLite store; None for another one."""
    path = sqlite_path(uri)
    return None if path is None else path.resolve()


def tracking_directory() -> Path:
    """Find the directory of files that belong to the store.

    Returns:
        The directory of a SQLite store; for a database or a server `ENIGMA_STORE_DIR`
        (a checkout points it at its repository), or the working directory.
    """
    database = database_file(tracking_uri())
    if database is not None:
        return database.parent
    return Path(os.environ.get("ENIGMA_STORE_DIR", "")).resolve()


def local_state(name: str) -> Path:
    """The path of a local file that belongs to the store (a lock, the ledger), in `.enigma/`."""
    directory = tracking_directory() / ".enigma"
    directory.mkdir(parents=True, exist_ok=True)
    return directory / name


@contextmanager
def registry_lock(task: str) -> Iterator[None]:
    """Let one process at a time change the registry; the others wait for their turn.

    Args:
        task: What this process does, for those who wait.
    """

    def wait(holder: str) -> None:
        logger.info("waiting for process %s", holder)

    with held_lock(local_state("registry.lock"), wait, task=task):
        yield


def initialise_store() -> str:
    """Create the store and the experiment unless they exist.

    This happens under a file lock: of several processes that create the tables of one SQLite
    file at the same time, all but one crash. The lock has a time limit, which `held_lock`
    does not: a store that hangs must not block a training run forever.

    Returns:
        The id of the experiment.

    Raises:
        mlflow.exceptions.MlflowException: If the store cannot be reached.
        OSError: If a directory stands where its file would be.
    """
    import mlflow
    from mlflow.tracking import MlflowClient

    uri = tracking_uri()
    database = database_file(uri)
    if database is not None and database.is_dir():
        # MLflow would try to open it for minutes.
        raise IsADirectoryError(errno.EISDIR, "expected a file, got a directory", str(database))
    with FileLock(local_state("store.lock"), timeout=LOCK_PATIENCE_S):
        # Parts of MLflow read the global value, even when given a client.
        mlflow.set_tracking_uri(uri)
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            # A server decides where artifacts go.
            local = not uri.startswith(("http://", "https://"))
            artifacts = tracking_directory() / ARTIFACTS
            location = artifacts.as_uri() if local else None
            return str(client.create_experiment(EXPERIMENT, location, MODEL_TRAINING))
        if experiment.lifecycle_stage == "deleted":
            logger.warning("the experiment %s had been deleted; restoring it", EXPERIMENT)
            client.restore_experiment(experiment.experiment_id)
        for name in MODEL_TRAINING.keys() - experiment.tags.keys():
            client.set_experiment_tag(experiment.experiment_id, name, MODEL_TRAINING[name])
        return str(experiment.experiment_id)


def connect() -> Any:
    """Open the store for a command that needs it.

    Returns:
        MLflow's client; the store and the experiment are ready.

    Raises:
        UserError: If the store cannot be reached or opened, or was moved without its paths.
    """
    from mlflow.tracking import MlflowClient

    for name, value in COMMAND_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("MLFLOW_TRACKING_URI") and not Path("params.yaml").is_file():
        raise UserError(
            f"expected the top of the repository, got {Path.cwd()} (no params.yaml; nothing was "
            "created)",
            "run the command from the top of the repository, or set MLFLOW_TRACKING_URI",
        )
    # A driver that is not installed, an address that is none.
    failures: tuple[type[Exception], ...] = (*store_errors(), ImportError, ValueError)
    try:
        experiment = initialise_store()
        client = MlflowClient(tracking_uri())
        location = str(client.get_experiment(experiment).artifact_location)
    except failures as error:
        raise UserError(
            f"expected a usable MLflow store at {shown_uri(tracking_uri())}, got: "
            f"{hide_password(str(error), tracking_uri())}",
            _remedy(tracking_uri(), error),
        ) from None
    if database_file(tracking_uri()) is not None:
        _check_place(location)
    return client


def _remedy(uri: str, error: Exception) -> str:
    other = "set MLFLOW_TRACKING_URI to another store (without it: mlflow.db in this directory)"
    if isinstance(error, ImportError):
        return f"install the driver of this database (docs/operations.md), or {other}"
    if uri.startswith(("http://", "https://")):
        # For `make serve` itself the variable names the database behind the server.
        return f"start its server (`env -u MLFLOW_TRACKING_URI make serve` starts one), or {other}"
    return f"start the database, or restore its file from a backup, or {other}"


def _check_place(location: str) -> None:
    """Refuse a SQLite store whose artifacts are recorded in another directory than its own.

    Args:
        location: The artifact location of the experiment.

    Raises:
        UserError: If the directory of the store was moved or copied.
    """
    recorded = recorded_directory(location)
    here = tracking_directory()
    if recorded is None or recorded == here or not (here / ARTIFACTS).is_dir():
        return
    raise UserError(
        f"expected the artifacts of {tracking_uri()} in {here}, got {recorded} (the directory was "
        "moved or copied)",
        f"run `enigma relocate` in {here}: it makes the store name its own artifacts",
    )


def recorded_directory(location: str) -> Path | None:
    """The directory of a store by the artifact location of its experiment; None for a server's."""
    path = local_path(location)
    return path.parent if path is not None and path.name == ARTIFACTS else None


def local_path(location: str) -> Path | None:
    """The directory that an artifact location names; None if it is not on this machine."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return Path(location) if location.startswith("/") else None


def store_errors() -> tuple[type[Exception], ...]:
    """The exceptions of a store that is unreachable, locked or damaged, or refuses a request."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, RequestException, SQLAlchemyError, OSError
