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
        commit = git_output("rev-parse", "HEAD", directory=directory)
        changes = git_output("status", "--porcelain", "--untracked-files=no", directory=directory)
        if commit is None or changes is None:
            return cls("unknown", "unknown")
        return cls(commit.decode().strip(), "true" if changes.strip() else "false")

    def tags(self) -> dict[str, str]:
        """The same as tags of a run or a model version."""
        return {"git_commit": self.commit, "git_dirty": self.dirty}


def git_output(*arguments: str, directory: Path = Path()) -> bytes | None:
    """What a git command prints; None without git, outside a repository, or if it fails."""
    command = ["git", "-C", str(directory), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
