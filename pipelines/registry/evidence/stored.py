"""Where a version is: a directory, a bundle, or a version of the store, found without MLflow."""

import re
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from pipelines.base.artifacts import sha256_file
from pipelines.base.errors import UserError
from pipelines.registry import ledger
from pipelines.registry.evidence.version import VERSION_FILE
from pipelines.registry.gates import Gate
from pipelines.registry.names import CHAMPION, FLOW, LM
from pipelines.tracking.store import ARTIFACTS, database_file, local_path, tracking_uri
from pipelines.tracking.uris import shown_uri

FIX = (
    "name a directory of a version, a bundle of `enigma export`, or a reference such as "
    "enigma-lm@champion where the store is"
)
REFERENCE = re.compile(rf"({LM}|{FLOW})(?:@(\w+)|/(\d+))")


@dataclass(frozen=True)
class Stored:
    """A version whose files are here.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        directory: Its files.
        tags: As MLflow's database has them; empty without it.
        gates: What the store's ledger says.
    """

    name: str
    directory: Path
    tags: Mapping[str, str] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()


@contextmanager
def opened(target: str) -> Iterator[Stored]:
    """Find a version for as long as the context lasts.

    Args:
        target: A directory, a bundle, or a reference to a version in a SQLite store.

    Raises:
        UserError: If it is none of them.
        GateError: `ledger`, if it is the champion and the ledger was changed.
    """
    path = Path(target)
    if path.is_dir():
        yield _directory(path)
    elif path.is_file():
        with tempfile.TemporaryDirectory() as temporary:
            yield _directory(_unpack(path, Path(temporary)))
    elif match := REFERENCE.fullmatch(target):
        yield _in_store(match[1], match[2], match[3])
    else:
        raise UserError(f"expected a version at {target}, found none", FIX)


def pack(version: Path, bundle: Path, root: str) -> None:
    """Pack a version into a tar file; it appears whole or not at all.

    Args:
        version: Its files.
        bundle: The file; what is there is replaced.
        root: The directory in the bundle.
    """
    temporary = bundle.parent / f".{bundle.name}.partial"
    try:
        with tarfile.open(temporary, "w") as archive:
            archive.add(version, arcname=root)
        temporary.replace(bundle)
    finally:
        temporary.unlink(missing_ok=True)


def _unpack(bundle: Path, into: Path) -> Path:
    try:
        with tarfile.open(bundle) as archive:
            # Nothing outside of the directory, no devices, no absolute links.
            archive.extractall(into, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{bundle}: expected a bundle, got: {error}", FIX) from None
    found = list(into.iterdir())
    if len(found) != 1 or not found[0].is_dir():
        raise UserError(f"{bundle}: expected one version, got {len(found)} entries", FIX)
    return found[0]


def _directory(path: Path) -> Stored:
    if not (path / "artifacts" / "proof").is_dir():
        raise UserError(f"expected a version in {path}, found no artifacts/proof", FIX)
    flow = (path / "artifacts" / "model" / "flow.safetensors").is_file()
    return Stored(FLOW if flow else LM, path)


def _in_store(name: str, alias: str | None, number: str | None) -> Stored:
    """Read the store's tables: MLflow would take seconds, and is not needed to trust them."""
    database = database_file(tracking_uri())
    reference = f"{name}@{alias}" if alias else f"{name}/{number}"
    if database is None or not database.is_file():
        raise UserError(
            f"expected a SQLite store to find {reference}, got {shown_uri(tracking_uri())}",
            f"run `enigma export {name}.tar {reference}` where MLflow is, and verify the bundle",
        )
    try:
        number, location, tags = _read_tables(database, name, alias, number)
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"expected a store of MLflow in {database}, got: {error}",
            "restore the file from a backup, or name the store in MLFLOW_TRACKING_URI",
        ) from None
    directory, own = local_path(location or ""), database.parent / ARTIFACTS
    # Of a store that was copied: the original's files are not the copy's.
    if directory is None or not directory.is_dir() or not _is_of(own, directory):
        raise UserError(
            f"expected the files of {reference}, got {directory or 'none'}",
            "`enigma where` lists versions; after a move of the repository run `enigma relocate`",
        )
    gates = _ledger_gates(name, str(number), directory) if alias == CHAMPION else ()
    return Stored(name, directory, tags, gates)


def _is_of(artifacts: Path, directory: Path) -> bool:
    return not artifacts.is_dir() or directory.resolve().is_relative_to(artifacts.resolve())


def _read_tables(
    database: Path, name: str, alias: str | None, number: str | None
) -> tuple[str | None, str | None, dict[str, str]]:
    """Return the number of a version, the place of its files and its tags."""
    with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as tables:
        if alias is not None:
            [number] = tables.execute(
                "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?",
                (name, alias),
            ).fetchone() or [None]
        [location] = tables.execute(
            "SELECT storage_location FROM model_versions WHERE name = ? AND version = ?",
            (name, number),
        ).fetchone() or [None]
        tags = tables.execute(
            "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?",
            (name, number),
        ).fetchall()
    return number, location, dict(tags)


def _ledger_gates(name: str, number: str, directory: Path) -> tuple[Gate, ...]:
    entries = ledger.read()
    expected = next(reversed(ledger.champions(entries, name)), None)
    moves = [e for e in entries if e["model"] == name and e["to"] == number]
    recorded = (moves[-1]["evidence_sha256"] if moves else {}).get("statement")
    statement = directory / VERSION_FILE
    got = sha256_file(statement) if statement.is_file() else None
    fix = "run `enigma history`, which says what to do"
    return (
        Gate(
            "ledger", number == expected, f"the alias is at version {number}",
            f"version {expected}, the ledger's champion", fix,
        ),
        Gate(
            "ledger_evidence", got == recorded, f"statement {str(got)[:12]}",
            f"{str(recorded)[:12]}, as the ledger recorded", fix,
        ),
    )  # fmt: skip
