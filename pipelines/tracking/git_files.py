"""Files as a commit has them, hashed the way DVC hashes a dependency."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines.tracking.git_state import git_output

IGNORED = ("__pycache__", ".pyc")


@dataclass(frozen=True)
class GitFiles:
    """A commit of the repository in the working directory.

    Args:
        commit: Its name.
    """

    commit: str

    def subject(self) -> str | None:
        """The first line of the commit's message; None if there is no such commit."""
        said = git_output("log", "-1", "--format=%h %s", "--end-of-options", self.commit)
        return None if said is None else said.decode(errors="replace").strip().split(" ", 1)[-1]

    def md5(self, path: str) -> str | None:
        """The hash that `dvc.lock` would have for a file or directory; None without it."""
        listing = git_output("ls-tree", "-r", "-z", "--full-tree", self.commit, "--", path)
        if not listing:
            return None
        names = [entry.split(b"\t", 1)[1].decode() for entry in listing.split(b"\0") if entry]
        hashes = {name: self._blob_md5(name) for name in names if not name.endswith(IGNORED)}
        if list(hashes) == [path]:
            return hashes[path]
        entries = sorted(
            (
                {"md5": md5, "relpath": str(PurePosixPath(name).relative_to(path))}
                for name, md5 in hashes.items()
            ),
            key=lambda entry: entry["relpath"],
        )
        return _md5(json.dumps(entries, sort_keys=True).encode()) + ".dir"

    def _blob_md5(self, name: str) -> str:
        return _md5(git_output("cat-file", "blob", f"{self.commit}:{name}") or b"")


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
