"""Files of the user's that git does not track and a flow run needs: texts, keys, a vocabulary.

A checkout has tracked files only, and what a run makes in it may be gone with the next one. So
texts in `sources/` are linked into it, and other relative paths are anchored in the repository.
"""

import os
from glob import escape, has_magic
from pathlib import Path
from typing import Any

from pipelines.base.errors import UserError

NOT_A_PATH = ("packaged:", "hf:")
SOURCES = "sources"


def anchored_source(source: str, repository: Path) -> str:
    """Anchor a local path or glob in the repository; other sources stay as they are.

    What is in `sources/` stays relative, so that a stage reads the links that DVC has hashed.

    Example:
        >>> anchored_source("texts/*.parquet", Path("/home/li/enigma"))
        '/home/li/enigma/texts/*.parquet'
        >>> anchored_source("/home/li/enigma/sources/*.jsonl", Path("/home/li/enigma"))
        'sources/*.jsonl'
        >>> anchored_source("packaged:sanguo", Path("/home/li/enigma"))
        'packaged:sanguo'
    """
    if source.startswith(NOT_A_PATH):
        return source
    # In a glob, a directory named "a?b" must not match others.
    start = Path(escape(str(repository))) if has_magic(source) else repository
    found = Path(os.path.normpath(start / Path(source).expanduser()))
    return str(found.relative_to(start) if found.is_relative_to(start / SOURCES) else found)


def anchor_files(params: Any, checkout: Path, repository: Path) -> None:
    """Anchor the relative paths of keys, and of a vocabulary that the checkout does not have.

    No stage depends on the keys. `tokenize` depends on the name of its vocabulary, so a tracked
    one keeps it.

    Args:
        params: The content of `params.yaml`, which the schema has accepted; changed in place.
        checkout: Where the run works.
        repository: Where relative paths start.
    """
    if signing := params.get("signing"):
        if signing["key"]:
            signing["key"] = _anchored(signing["key"], repository)
        for number, name in enumerate(signing["trusted_keys"]):
            signing["trusted_keys"][number] = _anchored(name, repository)
    tokenize = params["profiles"][params["profile"]]["tokenize"]
    name = tokenize["vocabulary"]
    if not (checkout / name).is_file() and (repository / name).is_file():
        tokenize["vocabulary"] = str(repository / name)


def _anchored(name: str, repository: Path) -> str:
    return name if name.startswith("~") else str(repository / name)


def link_sources(repository: Path, checkout: Path) -> None:
    """Link the texts in `sources/` into a checkout, where DVC watches them too.

    Args:
        repository: The user's.
        checkout: Has of `sources/` only what git tracks.

    Raises:
        UserError: If a folder cannot be listed, or a link is broken.
    """
    if not (repository / SOURCES).is_dir():
        return
    try:
        _link_folder(repository / SOURCES, checkout / SOURCES, {})
    except OSError as error:
        raise UserError(
            f"expected files in {SOURCES}, and folders that can be listed, got "
            f"{error.filename}: {error.strerror}",
            "correct its permissions, put a file where the link points, or remove the link",
        ) from None


def _link_folder(here: Path, there: Path, seen: dict[tuple[int, int], Path]) -> None:
    """Make a folder of the checkout's own with links to the files of the user's.

    DVC does not look behind a link to a folder. There is one only to a folder that the checkout
    has under another name (`seen`): the user's links may form a circle.
    """
    status = here.stat()
    first = seen.setdefault((status.st_dev, status.st_ino), there)
    if first != there:
        there.symlink_to(first)
        return
    there.mkdir(exist_ok=True)
    for path in sorted(here.iterdir()):
        link = there / path.name
        # What is there already is tracked.
        if path.is_dir() and not link.is_symlink():
            _link_folder(path, link, seen)
        elif not os.path.lexists(link):
            _link_file(path, link)


def _link_file(path: Path, link: Path) -> None:
    """Link a file; a hard link keeps what a run began with, whatever becomes of the name."""
    path.stat()  # refuses a broken link by its own name
    file = path.resolve()
    try:
        link.hardlink_to(file)
    except OSError:
        # It is on another disk, or another user's.
        link.symlink_to(file)
