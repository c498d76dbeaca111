"""A checkout of its own for the runs of one profile: `.enigma/worktrees/<profile>`.

A flow may start while someone edits the repository. So it works in a git worktree with a
snapshot of the tracked files, uncommitted changes included. It shares with the repository
what makes runs fast and resumable: DVC's cache, `runs/` and the MLflow store.
docs/adr/0003 says why not `dvc exp run --temp`.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from ruamel.yaml import YAML

from flows.running.local_files import SOURCES, anchor_files, anchored_source, link_sources
from pipelines.base.errors import UserError
from pipelines.base.locks import held_lock
from pipelines.base.run_stage import QUIET_ENVIRONMENT
from pipelines.base.sqlite_urls import sqlite_path, sqlite_url
from pipelines.params import (
    PARAMS_FILE,
    PROFILE_PATTERN,
    load_params,
    stays_in_the_workspace,
)

NULL_TAG = "tag:yaml.org,2002:null"

Profile = Annotated[str, Field(pattern=PROFILE_PATTERN, max_length=64)]
Source = Annotated[
    str,
    Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f]+$"),
    AfterValidator(stays_in_the_workspace),
]
Ranks = Annotated[int, Field(ge=1, le=4096)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
Say = Callable[[str], None]


class Settings(BaseModel):
    """The settings of a flow run: a profile of `params.yaml`, and overrides."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: Profile
    source: Source | None = None
    # Read the source again even if DVC sees no change: of files elsewhere it knows the name only.
    refresh: bool = False
    ranks: Ranks | None = None
    steps: Steps | None = None

    def overrides(self) -> dict[str, str | int]:
        """Return dotted names below the profile, and their values."""
        chosen = {
            "ingest.source": self.source,
            "train.ranks": self.ranks,
            "train.max_steps": self.steps,
        }
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True)
class Checkout:
    """Where a flow run works.

    Args:
        repository: The user's repository.
        path: The worktree.
        baseline: The commit that the snapshot is based on.
        lock: File descriptor of the profile's lock; it stays open as long as any process.
    """

    repository: Path
    path: Path
    baseline: str
    lock: int

    def environment(self) -> dict[str, str]:
        """Return the environment of every command that runs here."""
        binaries = str(Path(sys.executable).parent)
        return {
            **QUIET_ENVIRONMENT,
            **_identity(self.repository),
            **os.environ,
            "MLFLOW_TRACKING_URI": tracking_store(self.repository),
            # `python` and `dvc` are those that run this flow.
            "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "ENIGMA_RUNS_DIR": str(self.repository / "runs"),
            # The ledger and the artifacts are the repository's, not the checkout's.
            "ENIGMA_STORE_DIR": str(self.repository),
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, *command: str) -> str:
        """Run a short command here.

        Returns:
            Its stdout.

        Raises:
            UserError: If it fails, with its stderr.
        """
        return _run(list(command), self.path, self.environment())


@contextmanager
def open_checkout(repository: Path, settings: Settings, say: Say) -> Iterator[Checkout]:
    """Bring the checkout of a profile up to date, and lock it for one flow run.

    Args:
        repository: The user's repository; only ignored files in it change.
        settings: Written into the checkout's `params.yaml`.
        say: Receives messages for a person.

    Yields:
        The checkout. A second run of the same profile waits here until it is free.

    Raises:
        UserError: If this is not a git repository with a commit, or if the schema of
            `params.yaml` refuses the profile or a value.
    """
    _require_profile(repository, settings.profile)
    path = repository / ".enigma" / "worktrees" / settings.profile

    def wait(holder: str) -> None:
        say(f"waiting: process {holder} is already running this profile")

    with held_lock(path.with_name(f"{path.name}.lock"), wait) as lock:
        baseline = _git(repository, "rev-parse", "--verify", "HEAD")
        _materialise(repository, path, baseline, _snapshot(repository))
        # A killed DVC may leave its list of readers and writers half written, and then no other
        # DVC starts. The profile's lock is held, so no DVC is using the list.
        (path / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
        _share_cache(repository, path)
        # What the user has removed must go. Only a second --force removes a repository of texts.
        _git(path, "clean", "-d", "-x", "--force", "--force", "--quiet", "--", SOURCES)
        link_sources(repository, path)
        _warn_of_untracked(repository, say)
        write_params(path / PARAMS_FILE, settings, repository)
        yield Checkout(repository=repository, path=path, baseline=baseline, lock=lock)


def write_params(path: Path, settings: Settings, repository: Path) -> None:
    """Write the profile and the overrides into the checkout's `params.yaml`.

    Args:
        path: The file; comments and order are kept.
        settings: Profile and overrides.
        repository: Where relative paths of sources start.

    Raises:
        UserError: If the schema refuses a value.
    """
    yaml = _same_style()
    params = yaml.load(path.read_text(encoding="utf-8"))
    params["profile"] = settings.profile
    profile = params["profiles"][settings.profile]
    for name, value in settings.overrides().items():
        section, key = name.split(".")
        profile[section][key] = value
    profile["ingest"]["source"] = anchored_source(profile["ingest"]["source"], repository)
    anchor_files(params, path.parent, repository)
    with path.open("w", encoding="utf-8") as stream:
        yaml.dump(params, stream)
    load_params(path)


def _require_profile(repository: Path, profile: str) -> None:
    """Refuse an unknown profile or a wrong `params.yaml` before anything is made for it."""
    known = load_params(repository / PARAMS_FILE).profiles
    if profile not in known:
        raise UserError(
            f"profile: expected one of {', '.join(sorted(known))}, got {profile!r}",
            "name an existing profile, or add this one under `profiles:` in params.yaml",
        )


def _same_style() -> YAML:
    """Return a YAML that keeps the style of a file, so an experiment shows only real changes."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar(NULL_TAG, "null")
    )
    return yaml


def tracking_store(repository: Path) -> str:
    """Return the MLflow store that all processes share, whatever their working directory.

    Returns:
        `MLFLOW_TRACKING_URI`, or `mlflow.db` of the repository; a relative SQLite
        path starts at the repository.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    path = sqlite_path(uri) if uri else Path("mlflow.db")
    return sqlite_url(repository / path) if path else str(uri)


def _snapshot(repository: Path) -> str:
    """Write the tracked files as they are now into a git tree; index and files do not change.

    Returns:
        The id of the tree.
    """
    index = Path(_git(repository, "rev-parse", "--path-format=absolute", "--git-path", "index"))
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "index")
        shutil.copyfile(index, copy)
        env = {"GIT_INDEX_FILE": str(copy)}
        _git(repository, "add", "--update", ":/", env=env)
        return _git(repository, "write-tree", env=env)


def _materialise(repository: Path, path: Path, baseline: str, tree: str) -> None:
    """Make the worktree, or bring it up to date; existing outputs stay."""
    if not (path / ".git").is_file() or not _is_worktree(path):
        shutil.rmtree(path, ignore_errors=True)
        _git(repository, "worktree", "prune")
        _git(repository, "worktree", "add", "--quiet", "--detach", str(path), baseline)
    # A killed git leaves its lock. The profile's lock is held, so no git is using it.
    lock = _git(path, "rev-parse", "--path-format=absolute", "--git-path", "index.lock")
    Path(lock).unlink(missing_ok=True)
    _git(path, "checkout", "--quiet", "--force", "--detach", baseline)
    _git(path, "restore", f"--source={tree}", "--staged", "--worktree", ":/")
    _git(path, "clean", "-d", "--force", "--quiet", "--exclude=dvc.lock")


def _is_worktree(path: Path) -> bool:
    try:
        return Path(_git(path, "rev-parse", "--show-toplevel")).samefile(path)
    except UserError:
        # The repository has moved, or git has lost its record of the worktree.
        return False


def _share_cache(repository: Path, path: Path) -> None:
    """Give the checkout the DVC settings and the cache of the repository."""
    local = repository / ".dvc" / "config.local"
    if local.is_file():
        shutil.copyfile(local, path / ".dvc" / "config.local")
    dvc = [sys.executable, "-m", "dvc"]
    cache = _run([*dvc, "cache", "dir"], repository)
    # A relative path: DVC cannot write one with Chinese characters into its settings.
    relative = os.path.relpath(cache, path)
    _run([*dvc, "config", "--local", "cache.dir", relative], path)


def _warn_of_untracked(repository: Path, say: Say) -> None:
    listing = _git(repository, "ls-files", "-z", "--others", "--exclude-standard", "--", ":/*.py")
    if files := listing.split("\0")[:-1]:
        say(
            f"not part of this run, because git does not track them: {', '.join(files[:5])}"
            f"{', ...' if len(files) > 5 else ''} (`git add` includes them)"
        )


def _identity(repository: Path) -> dict[str, str]:
    """Return an author for experiments, on a machine where git has none."""
    command = ["git", "config", "--get-regexp", r"^user\.(name|email)$"]
    known = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if len(re.findall(r"^user\.", known.stdout, re.MULTILINE)) >= 2:
        return {}
    return {
        f"GIT_{role}_{name}": value
        for role in ("AUTHOR", "COMMITTER")
        for name, value in (("NAME", "Enigma flows"), ("EMAIL", "flows@localhost"))
    }


def _git(directory: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    return _run(["git", *arguments], directory, env)


def _run(command: list[str], cwd: Path, env: Mapping[str, str] | None = None) -> str:
    environment = {**QUIET_ENVIRONMENT, **os.environ, **(env or {})}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=True
        )
    except FileNotFoundError as error:
        raise UserError(
            f"expected the program {command[0]} and the directory {cwd}, got: {error}",
            "install git, and start from the top of the repository",
        ) from None
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"`{' '.join(command)}` failed in {cwd}: {error.stderr.strip()}",
            "correct what it names; a flow needs a git repository with at least one commit",
        ) from None
    return done.stdout.strip()
