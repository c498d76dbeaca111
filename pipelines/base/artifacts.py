"""Files that appear whole or not at all, and the manifest that says what they are.

A stage builds its output directory next to its final path and renames it at the
end (`publish_directory`), so a killed stage never leaves half an output. The
manifest of a directory lists every file with its SHA-256; its `root` is one hash
for all of them, by which certificates and the registry name a data set.
"""

import csv
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from pipelines.base.errors import UserError

if TYPE_CHECKING:
    import numpy.typing as npt

MANIFEST_NAME = "manifest.json"


def sha256_file(path: Path) -> str:
    """Hash a file in constant memory.

    Returns:
        The SHA-256 as 64 hexadecimal digits.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file piece by piece; it appears by an atomic rename after the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def write_array(stream: IO[bytes], array: "npt.NDArray[Any]") -> None:
    """Write the items of an array in C order, as `ndarray.tofile` does.

    The error of `tofile` on a full disk does not say that the disk is full.
    """
    stream.write(array.ravel().view("u1").data)


def write_text(path: Path, text: str) -> None:
    """Write a text file by an atomic rename; UTF-8."""
    with whole_file(path) as stream:
        stream.write(text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON by an atomic rename; NaN and infinities are refused."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table with a header by an atomic rename; a cell that a row lacks is empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, stream.getvalue())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that an earlier stage wrote.

    Raises:
        UserError: If the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"expected {path}, found no such file", "run `dvc repro`, which makes it"
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error})", "delete it and run `dvc repro` again"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object", "delete it and run `dvc repro` again")
    return value


@contextmanager
def publish_directory(final: Path) -> Iterator[Path]:
    """Build a directory under a temporary name; move it into place only on success.

    Args:
        final: The directory's final path; what is there is replaced.

    Yields:
        An empty directory on the same file system to write into. On an
        exception it is removed and `final` is left as it was. What a killed
        process left is removed by the next one that builds the same directory.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    building, lock = _begin(final)
    try:
        yield building
        building.chmod(0o755)
        old = None
        if final.exists():
            # Out of the way first: while it is deleted it would be half there.
            old = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
            final.rename(old)
        building.rename(final)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        if building.exists():
            shutil.rmtree(building)
        os.close(lock)


@contextmanager
def temporary_directory(near: Path) -> Iterator[Path]:
    """Make a directory for as long as the context lasts.

    Args:
        near: A file or directory; the new one is beside it. What a killed process left is removed
            by the next one that makes or publishes a directory near the same.

    Yields:
        An empty directory on the same file system.
    """
    near.parent.mkdir(parents=True, exist_ok=True)
    made, lock = _begin(near)
    try:
        yield made
    finally:
        shutil.rmtree(made)
        os.close(lock)


def remove_directory(path: Path) -> None:
    """Delete a directory, if it is there, so that nobody ever finds a part of it.

    It is renamed first. What a killed process left under such a name is deleted as well.
    """
    with temporary_directory(path) as hidden:
        if path.is_dir():
            path.rename(hidden / path.name)


def _begin(final: Path) -> tuple[Path, int]:
    """Make a directory to build in, locked for as long as this process lives."""
    prefix = f".{final.name}."
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        # Nobody else sweeps between the making of a directory and its lock.
        can_lock = _lock(folder, wait=True)
        if can_lock:
            _sweep(final.parent, prefix)
        building = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
        lock = os.open(building, os.O_RDONLY)
        if can_lock:
            _lock(lock)
    finally:
        os.close(folder)
    return building, lock


def _sweep(folder: Path, prefix: str) -> None:
    """Remove directories that `mkdtemp` made with a prefix, and that no process holds."""
    ours = re.compile(re.escape(prefix) + "[a-z0-9_]{8}")
    for path in [path for path in folder.iterdir() if ours.fullmatch(path.name) and path.is_dir()]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if _lock(descriptor):
                shutil.rmtree(path)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock a directory; False if another process has it, or the disk cannot lock directories."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def write_manifest(directory: Path, *, stage: str, facts: Mapping[str, Any]) -> str:
    """Hash every file below a directory into its `manifest.json`.

    Args:
        directory: The directory; its manifest is written last.
        stage: The stage that made it.
        facts: Counts and settings that later stages need.

    Returns:
        The root: SHA-256 over the sorted lines `<sha256>  <relative path>`.
    """
    files = [
        {
            "path": path.relative_to(directory).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    ]
    root = manifest_root(files)
    write_json(directory / MANIFEST_NAME, {"stage": stage, "root": root, **facts, "files": files})
    return root


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest of a directory that a stage published."""
    return read_json(directory / MANIFEST_NAME)


def verify_manifest(directory: Path) -> dict[str, Any]:
    """Hash every file again and compare the hashes with the manifest.

    Returns:
        The manifest.

    Raises:
        UserError: At the first file that is missing or has changed, or if the
            root does not match the files.
    """
    manifest = read_manifest(directory)
    for entry in manifest["files"]:
        path = directory / entry["path"]
        got = sha256_file(path) if path.is_file() else "no such file"
        if got != entry["sha256"]:
            raise UserError(
                f"{path}: expected sha256 {entry['sha256']}, got {got}",
                f"restore it with `dvc checkout --force {directory}`, or make it again with "
                "`dvc repro`",
            )
    if manifest_root(manifest["files"]) != manifest["root"]:
        raise UserError(
            f"{directory / MANIFEST_NAME}: the root does not match the files",
            "make the directory again with `dvc repro`",
        )
    return manifest


def manifest_root(files: list[dict[str, Any]]) -> str:
    """Hash all files of a manifest into one: over the sorted lines `<sha256>  <path>`."""
    lines = sorted(f"{entry['sha256']}  {entry['path']}\n" for entry in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
