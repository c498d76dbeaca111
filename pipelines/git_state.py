"""Which code ran: the commit, and whether tracked files differed from it."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GitState:
    """Which code ran.

    Args:
        commit: 40 hexadecimal digits, or "unknown" outside a repository.
        dirty: "true" if tracked files differed from the commit, "false" if not,
            or "unknown".
    """

    commit: str
    dirty: str

    @classmethod
    def read(cls, directory: Path = Path()) -> "GitState":
        """Ask git about a directory; works without git and outside a repository."""
        commit = _git(directory, "rev-parse", "HEAD")
        changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
        if commit is None or changes is None:
            return cls("unknown", "unknown")
        return cls(commit, "true" if changes else "false")

    def tags(self) -> dict[str, str]:
        """The same as tags of a run or a model version."""
        return {"git_commit": self.commit, "git_dirty": self.dirty}


def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
