"""Read from git: which code ran, and the files of a commit, hashed as DVC hashes them."""

import hashlib
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# DVC leaves these out of the hash of a directory (.dvcignore).
IGNORED = ("__pycache__", ".pyc")


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

    @property
    def known(self) -> bool:
        """Whether git named the commit."""
        return is_commit(self.commit)

    def tags(self) -> dict[str, str]:
        """The state as tags of a run or a model version."""
        return {"git_commit": self.commit, "git_dirty": self.dirty}


@dataclass(frozen=True)
class GitFiles:
    """A commit of the repository in the working directory.

    Args:
        commit: Its hash or another name of it.
    """

    commit: str

    def subject(self) -> str | None:
        """The first line of the commit's message; None if there is no such commit."""
        said = git_output("log", "-1", "--format=%h %s", "--end-of-options", self.commit)
        return None if said is None else said.decode(errors="replace").strip().split(" ", 1)[-1]

    def md5(self, path: str) -> str | None:
        """The hash that `dvc.lock` would hold for a file or directory; None if it is absent."""
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


def is_commit(text: str) -> bool:
    """Whether a text is the hash of a commit."""
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) is not None


def git_output(*arguments: str, directory: Path = Path()) -> bytes | None:
    """Return what a git command prints; None if it fails or git is missing."""
    done = _git(*arguments, directory=directory)
    return None if done is None or done.returncode != 0 else done.stdout


def git_refusal(directory: Path = Path()) -> tuple[str, str]:
    r"""Say why git names no commit of a directory, and what helps: git's own advice if it has any.

    Example:
        >>> advice = "To add an exception for this directory, call:\n\n\tgit config ... /srv"
        >>> _advice(f"fatal: detected dubious ownership\n{advice}\n")
        'run `git config ... /srv`'
    """
    done = _git("rev-parse", "--verify", "HEAD", directory=directory)
    if done is None:
        return "git is not installed", "install git"
    text = done.stderr.decode(errors="replace")
    return text.split("\n", maxsplit=1)[0] or "git failed without a message", _advice(text)


def _advice(text: str) -> str:
    found = re.search(r"call:\s+(git config .+)", text)
    if found:
        return f"run `{found[1].strip()}`"
    return "work in a clone of the repository; in a new one, `git add --all && git commit` first"


def _git(*arguments: str, directory: Path) -> subprocess.CompletedProcess[bytes] | None:
    command = ["git", "-C", str(directory), *arguments]
    # Messages that are read must not be translated.
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(command, capture_output=True, check=False, env=environment)
    except FileNotFoundError:
        return None


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
