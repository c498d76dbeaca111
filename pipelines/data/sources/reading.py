"""The boundary around each file of a source: documents, or one error that names the file.

Readers know a format and say where they are (`Place`). Whatever they raise becomes a
`BadFileError` here, so no other module catches what a damaged file can cause.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.base.artifacts import sha256_file
from pipelines.base.errors import UserError

LONGEST_REASON = 300
KINDS_OF_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class BadFileError(UserError):
    """A file of a source cannot be read.

    Args:
        path: The file, as the message shows it.
        detail: Where in the file, what was expected, and what was found; without the path, so
            that it may leave this machine in a manifest.
        fix: What the user can do about it.
    """

    def __init__(self, path: str, detail: str, fix: str) -> None:
        self.detail = detail
        super().__init__(f"{path}: {detail}", fix)
        self.args = (path, detail, fix)


class RefusedError(Exception):
    """A reader refuses what it found; the boundary adds the file and the place.

    Args:
        problem: What was expected, and what was found.
        fix: What the user can do about it.
    """

    def __init__(self, problem: str, fix: str) -> None:
        self.problem = problem
        self.fix = fix
        super().__init__(problem, fix)


@dataclass
class Place:
    """Where in its file a reader is, such as `line 5`; empty before the first row."""

    row: str = ""


Reader = Callable[[Path, int, Place], Iterator[pa.Table]]
# Device, inode, size and the time of the last change: another file, or other bytes, has another.
State = tuple[int, int, int, int]


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Args:
        name: Its path below the source, which no other file of the source has; its identity
            in the manifest and in an unfinished run.
        path: Where it is on this machine.
        what: What it should be, for messages ("parquet file").
        reader: Yields its documents as tables of `RAW_SCHEMA`, after a number of documents to
            skip, and keeps a `Place` up to date.
        is_local: Whether it is the user's own file, which may be moved into quarantine.
    """

    name: str
    path: Path
    what: str
    reader: Reader
    is_local: bool = False

    def read(self, skip: int = 0, state: State | None = None) -> Iterator[pa.Table]:
        """Yield the documents after the first `skip` as tables of `RAW_SCHEMA`.

        Args:
            skip: Documents to skip.
            state: What the file must still be; by default what it is at the start.

        Raises:
            BadFileError: If the file cannot be read, holds something else, or changes meanwhile.
        """
        with self._boundary() as place:
            state = state or _state(self.path)
            for table in self.reader(self.path, skip, place):
                yield table
                _check_state(self.path, state)
            _check_state(self.path, state)

    def sha256(self) -> tuple[str, State]:
        """Hash the file; also return what tells that it has not been written to since.

        Raises:
            BadFileError: If it cannot be read, or changes meanwhile.
        """
        with self._boundary():
            state = _state(self.path)
            digest = sha256_file(self.path)
            _check_state(self.path, state)
            return digest, state

    @contextmanager
    def _boundary(self) -> Iterator[Place]:
        place = Place()
        try:
            _check_name(self.path)
            _check_type(self.path)
            yield place
        except RefusedError as error:
            raise self._bad(place, error.problem, error.fix) from error
        except OSError as error:
            if error.strerror is None:
                raise self._damaged(place, error) from error
            raise self._bad(
                place,
                f"expected a {self.what} that can be opened, got: {error.strerror}",
                "put the file there, or correct its permissions",
            ) from error
        # The one place that catches everything: no list of what parsers raise on damaged bytes
        # is ever complete.
        except Exception as error:
            raise self._damaged(place, error) from error

    def _damaged(self, place: Place, error: Exception) -> BadFileError:
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        reason = reason.replace(str(self.path), self.name)
        return self._bad(
            place,
            f"expected a whole {self.what}, got one that cannot be read "
            f"({type(error).__name__}: {reason})",
            "the file is cut off or damaged: download or write it again",
        )

    def _bad(self, place: Place, problem: str, fix: str) -> BadFileError:
        detail = f"{place.row}: {problem}" if place.row else problem
        return BadFileError(shown(str(self.path)), detail, fix)


def shown(name: str) -> str:
    r"""Make the name of a file printable: bytes that are not UTF-8 become `\xff`.

    Example:
        >>> shown("甲\udcff.jsonl")
        '甲\\xff.jsonl'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise RefusedError(
            f"expected a file name in UTF-8, got {shown(path.name)!r}",
            "rename the file, and the folder it is in if that has such a name",
        ) from None


def _state(path: Path) -> State:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_state(path: Path, state: State) -> None:
    if _state(path) != state:
        raise RefusedError(
            "expected a file that stays as it is while it is read, got one that was written to",
            "wait until the program that writes it has ended, and run the command again",
        )


def _check_type(path: Path) -> None:
    """Refuse what is not a file; to open a named pipe would wait forever."""
    if path.is_symlink() and not path.exists():
        raise RefusedError(
            f"expected a file, got a broken link to {shown(str(path.readlink()))}",
            "put the file where the link points, or remove the link",
        )
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise RefusedError(
            f"expected a file, got {KINDS_OF_FILES.get(stat.S_IFMT(mode), 'something else')}",
            "name files, or folders of files, of documents",
        )
