"""A store that was moved or copied with its directory: `enigma relocate`.

MLflow writes the absolute path of every artifact into its database. After a move these paths
name a place that is gone, and after a copy the artifacts of the original.
"""

from pathlib import Path
from typing import Any

from pipelines.base.errors import UserError
from pipelines.tracking.store import (
    ARTIFACTS,
    EXPERIMENT,
    database_file,
    local_path,
    recorded_directory,
    tracking_directory,
    tracking_uri,
)

# Where MLflow 3 keeps paths of artifacts.
COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def relocate() -> tuple[Path, Path]:
    """Make the store name the artifacts beside it, all paths in one transaction.

    Returns:
        The directory that it named before, and the present one.

    Raises:
        UserError: If this is no SQLite store of ours, or the files of a version are not here;
            then nothing is changed.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DatabaseError

    here = tracking_directory()
    database = database_file(tracking_uri())
    if database is None or not database.is_file():
        raise UserError(
            f"expected a SQLite store of MLflow in {here}, found none",
            "run the command in the directory that has mlflow.db",
        )
    engine = create_engine(tracking_uri())
    try:
        with engine.begin() as connection:
            return _move_paths(connection, here), here
    except DatabaseError as error:
        raise UserError(
            f"expected a store of MLflow in {database}, got: {error.orig}",
            "restore the file from a backup, or name the store in MLFLOW_TRACKING_URI",
        ) from None
    finally:
        engine.dispose()


def _move_paths(connection: Any, here: Path) -> Path:
    from sqlalchemy import text

    location = connection.execute(
        text("SELECT artifact_location FROM experiments WHERE name = :name"),
        {"name": EXPERIMENT},
    ).scalar_one_or_none()
    before = recorded_directory(location or "")
    if before is None:
        raise UserError(
            f"expected the experiment {EXPERIMENT} with its artifacts on this machine, "
            f"got {location}",
            "leave this store as it is: `enigma relocate` moves paths that this project made",
        )
    for old, new in ((before.as_uri(), here.as_uri()), (str(before), str(here))):
        for table, columns in COLUMNS.items():
            for column in columns:
                # Table and column are ours; the prefix is compared, not a pattern.
                statement = (
                    f"UPDATE {table} SET {column} = :new || substr({column}, :length + 1) "  # noqa: S608
                    f"WHERE substr({column}, 1, :length + 1) = :old || '/'"
                )
                values = {"old": old, "new": new, "length": len(old)}
                connection.execute(text(statement), values)
    models = connection.execute(text("SELECT artifact_location FROM logged_models"))
    _check_models([local_path(row[0]) for row in models])
    return before


def _check_models(directories: list[Path | None]) -> None:
    missing = [path for path in directories if path is not None and not path.is_dir()]
    if missing:
        raise UserError(
            f"expected the files of every model beside the store, found none in {missing[0]}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}",
            f"copy the whole directory {ARTIFACTS}/ from the old place, then run it again",
        )
