"""Find the files of documents that a local path, folder or glob names.

The name of a file says whether it is parquet, JSON lines or an XML dump of Wikipedia.
"""

import os
import re
from glob import has_magic
from itertools import takewhile
from pathlib import Path

from pipelines.base.errors import UserError
from pipelines.data.sources.formats import read_json_lines, read_wikipedia_dump
from pipelines.data.sources.parquet import read_parquet
from pipelines.data.sources.reading import Reader, SourceFile, shown

QUARANTINE = "quarantine"
COMPRESSED = r"(?:\.(?:gz|bz2|zst))?$"
# Wikipedia numbers the pages of a part of its dump behind the ending: `.xml-p1p187712.bz2`.
FORMATS: dict[str, tuple[str, Reader]] = {
    r"\.parquet$": ("parquet file", read_parquet),
    rf"\.(?:jsonl|ndjson){COMPRESSED}": ("file of JSON lines", read_json_lines),
    rf"\.xml(?:-p\d+p\d+)?{COMPRESSED}": ("XML dump of a wiki", read_wikipedia_dump),
}
ENDINGS = ".parquet, .jsonl, .ndjson or .xml (the last three also with .gz, .bz2 or .zst)"

# As `glob.escape` writes these three.
ESCAPED = re.compile(r"\[([*?[])\]")


def local_files(source: str, setting: str) -> tuple[list[SourceFile], list[str]]:
    """Find the files of a path, folder or glob; folders are read with all below them.

    Not read are hidden files and folders, folders that begin with `_` (Spark's unfinished
    work), `quarantine/`, files of other formats, and a folder that was read by another link.

    Args:
        source: The path, folder or glob.
        setting: What named it, for messages.

    Returns:
        The files in the order of their names, and the names of what is not read. Names are
        paths below the folder, or below the fixed part of the glob.

    Raises:
        UserError: If there is no file of documents, or a folder cannot be listed.
    """
    given = Path(os.path.expanduser(source))  # noqa: PTH111 - Path's raises for an unknown user
    if os.path.isdir(given):  # noqa: PTH112 - Path's raises where a folder above is closed
        search = _Search(given, setting)
        search.add(given)
    elif os.path.lexists(given):
        if _format(given) is None:
            raise UserError(
                f"{setting}: expected {ENDINGS}, got {shown(given.name)}",
                "unpack or convert the file, or name files of these formats",
            )
        search = _Search(given.parent, setting)
        search.files.add(given)
    else:
        fixed = takewhile(_is_fixed, given.parts)
        search = _Search(Path(*(ESCAPED.sub(r"\1", part) for part in fixed)), setting)
        for path in _matches(given, search.root, setting):
            search.add(path)
    if not search.files:
        ignored = f" (not read: {', '.join(sorted(search.ignored))})" if search.ignored else ""
        raise UserError(
            f"{setting}: expected files of documents, {ENDINGS}, "
            f"found none for {source!r}{ignored}",
            "correct the path or glob (a relative one starts at the current folder)",
        )
    return [_source_file(path, search.root) for path in sorted(search.files)], sorted(
        search.ignored
    )


def _matches(pattern: Path, root: Path, setting: str) -> list[Path]:
    """Match a glob; `root` is its fixed part."""
    try:
        rest = pattern.parts[len(root.parts) :]
        return sorted(root.glob(str(Path(*rest)))) if rest else []
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f"{setting}: expected a path or a glob, got {str(pattern)!r} ({error})",
            "write a glob such as sources/*.jsonl or sources/**/*.jsonl",
        ) from error


def _is_fixed(part: str) -> bool:
    """Whether a part of a glob has no pattern, except what `glob.escape` has written."""
    return not has_magic(ESCAPED.sub("", part))


def _source_file(path: Path, root: Path) -> SourceFile:
    what, reader = _format(path) or ("", read_parquet)
    name = shown(path.relative_to(root).as_posix())
    return SourceFile(name, path, what, reader, is_local=True)


def _format(path: Path) -> tuple[str, Reader] | None:
    formats = (
        format_ for end, format_ in FORMATS.items() if re.search(end, path.name, re.IGNORECASE)
    )
    return next(formats, None)


class _Search:
    """What is found below a folder.

    Args:
        root: The folder; names are relative to it.
        setting: What named it, for messages.
    """

    def __init__(self, root: Path, setting: str) -> None:
        self.root = root
        self._setting = setting
        self.files: set[Path] = set()
        self.ignored: set[str] = set()
        self._folders: dict[tuple[int, int], Path] = {}

    def add(self, path: Path) -> None:
        """Add a file, or a folder with all below it."""
        above = [parent for parent in path.parents if parent.is_relative_to(self.root)]
        hidden = [folder for folder in above if folder != self.root and _is_hidden(folder)]
        waiting = [] if hidden else [path]
        for folder in hidden:
            self._ignore(folder)
        while waiting:
            here = waiting.pop()
            is_folder = os.path.isdir(here)  # noqa: PTH112 - see above
            if here != self.root and _is_hidden(here, is_folder=is_folder):
                self._ignore(here, is_folder=is_folder)
            elif is_folder:
                waiting += self._listed(here)
            elif _format(here) is None:
                self._ignore(here, is_folder=False)
            else:
                self.files.add(here)

    def _listed(self, folder: Path) -> list[Path]:
        """List a folder, unless a link has led to it before: links may form a circle."""
        try:
            status = folder.stat()
            first = self._folders.setdefault((status.st_dev, status.st_ino), folder)
            if first != folder:
                self._ignore(folder)
                return []
            return sorted(folder.iterdir(), reverse=True)
        except OSError as error:
            raise UserError(
                f"{self._setting}: expected a folder that can be listed, "
                f"got {shown(str(folder))}: {error.strerror}",
                "correct its permissions, or move it out of the source",
            ) from error

    def _ignore(self, path: Path, *, is_folder: bool = True) -> None:
        name = shown(path.relative_to(self.root).as_posix())
        self.ignored.add(f"{name}/" if is_folder else name)


def _is_hidden(path: Path, *, is_folder: bool = True) -> bool:
    return path.name.startswith(".") or (
        is_folder and (path.name.startswith("_") or path.name == QUARANTINE)
    )
