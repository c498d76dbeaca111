"""Hash the outputs that a `dvc.lock` names again, in DVC's cache.

DVC names a cached file by its MD5, and a directory by the MD5 of a JSON list of its files
(https://doc.dvc.org/user-guide/project-structure/internal-files). MD5 is DVC's choice;
our manifests have SHA-256, which also protects against deliberate changes.
"""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.base.artifacts import MANIFEST_NAME, manifest_root, read_json, sha256_file
from pipelines.base.errors import GateError, UserError
from pipelines.registry.content import LOCK_FILE

DIRECTORY = ".dir"
LINEAGE = "lineage"


@dataclass(frozen=True)
class Output:
    """A file or directory that a stage made or needs.

    Args:
        path: As `dvc.yaml` spells it.
        md5: Its hash; the hash of a directory ends in ".dir".
    """

    path: str
    md5: str


@dataclass(frozen=True)
class Stage:
    """A stage as `dvc.lock` records it."""

    name: str
    deps: tuple[Output, ...]
    outs: tuple[Output, ...]


def read_lock(path: Path) -> dict[str, Stage]:
    """Read a `dvc.lock`.

    Raises:
        GateError: `lineage`, if it is not a lock file.
    """
    try:
        raw = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        stages = {
            name: Stage(name, _outputs(stage.get("deps", [])), _outputs(stage.get("outs", [])))
            for name, stage in raw["stages"].items()
        }
    except (FileNotFoundError, YAMLError, KeyError, TypeError, AttributeError) as error:
        raise GateError(
            LINEAGE, f"{path.name}: expected the lock of a finished `dvc repro`, got: {error!r}",
            "run `dvc repro`, then `enigma register` again",
        ) from None  # fmt: skip
    return stages


def cache_directory() -> Path:
    """Return the directory in which DVC keeps its objects.

    Raises:
        UserError: If this is not a DVC repository.
    """
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(
            f"expected a DVC repository in {Path.cwd()}, got: {done.stderr.strip()}",
            "run the command from the top of the repository",
        )
    return Path(done.stdout.strip())


def hash_output(output: Output, cache: Path) -> dict[str, Path]:
    """Hash an output again, file by file.

    Args:
        output: As the lock names it.
        cache: DVC's cache.

    Returns:
        The cached file of each path below the output; of the path "" for an output that is a file.

    Raises:
        GateError: `lineage`, at the first cached file that is missing or has changed.
    """
    stored = _stored(cache, output.md5, output.path)
    files = {"": stored}
    if output.md5.endswith(DIRECTORY):
        listing = json.loads(stored.read_text(encoding="utf-8"))
        files = {
            entry["relpath"]: _stored(cache, entry["md5"], f"{output.path}/{entry['relpath']}")
            for entry in listing
        }
    if MANIFEST_NAME in files:
        _check_manifest(output.path, files)
    return files


def check_working_copy(output: Output, files: Mapping[str, Path]) -> None:
    """Hash the files in the working directory, unless they are links to the cached ones.

    Raises:
        GateError: `lineage`, at the first file that differs.
    """
    for name, stored in files.items():
        here = Path(output.path, name)
        if not here.is_file() or here.samefile(stored):
            continue
        expected, got = sha256_file(stored), sha256_file(here)
        if got != expected:
            raise GateError(
                LINEAGE, f"{here}: expected sha256 {expected}, got {got}",
                f"restore it with `dvc checkout --force {output.path}`",
            )  # fmt: skip


def hash_made(outputs: Iterable[Output]) -> dict[str, str]:
    """Hash outputs in the working directory, each as its stage left it.

    DVC's cache plays no part: the MD5 of a directory is computed as DVC does.

    Returns:
        The SHA-256 of every file by its path.

    Raises:
        UserError: At the first output that DVC would call modified.
    """
    found: dict[str, str] = {}
    for output in outputs:
        path = Path(output.path)
        files = [path] if path.is_file() else _files_below(path)
        hashes = {file.as_posix(): _hash_twice(file) for file in files}
        got = _md5_of_output(path, {file: md5 for file, (md5, _) in hashes.items()})
        if got != output.md5:
            raise UserError(
                f"{path}: expected md5 {output.md5}, as {LOCK_FILE} has it, got {got}",
                f"restore it with `dvc checkout --force {path}`, or run `dvc repro`, which makes "
                "it again",
            )
        found |= {file: sha256 for file, (_, sha256) in hashes.items()}
    return found


def _files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def _hash_twice(path: Path) -> tuple[str, str]:
    """Return the MD5 and the SHA-256 of what one reading of a file gives."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            md5.update(block)
            sha256.update(block)
    return md5.hexdigest(), sha256.hexdigest()


def _md5_of_output(path: Path, md5s: Mapping[str, str]) -> str:
    """Return the hash by which DVC names an output with these files."""
    if not path.is_dir():
        return md5s.get(path.as_posix(), "no such file")
    listing = [
        {"md5": md5, "relpath": Path(file).relative_to(path).as_posix()}
        for file, md5 in md5s.items()
    ]
    listing.sort(key=lambda entry: entry["relpath"])
    text = json.dumps(listing, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + DIRECTORY


def md5_file(path: Path) -> str:
    """Return the MD5 by which DVC names a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _stored(cache: Path, md5: str, called: str) -> Path:
    path = cache / "files" / "md5" / md5[:2] / md5[2:]
    again = "run `dvc pull`, or `dvc repro` at the commit of the version"
    if not path.is_file():
        raise GateError(
            LINEAGE, f"{called}: expected {path} in DVC's cache, found no such file", again
        )
    got = md5_file(path)
    if got != md5.removesuffix(DIRECTORY):
        raise GateError(
            LINEAGE,
            f"{called}: expected md5 {md5}, got {got} ({path})",
            # DVC believes the name of a file that nobody may write, and would link it as it is.
            f"delete the file (rm -f {shlex.quote(str(path))}), then {again}",
        )
    return path


def _check_manifest(called: str, files: Mapping[str, Path]) -> None:
    manifest = read_json(files[MANIFEST_NAME])
    # DVC has no doubt about these files, and makes them again only by force.
    fix = (
        f"run `dvc repro --force --single-item {manifest.get('stage')}`, then `enigma register` "
        "again"
    )
    for entry in manifest["files"]:
        stored = files.get(entry["path"])
        got = sha256_file(stored) if stored else "no such file"
        if got != entry["sha256"]:
            raise GateError(
                LINEAGE,
                f"{called}/{entry['path']}: expected sha256 {entry['sha256']}, got {got}",
                fix,
            )
    if manifest_root(manifest["files"]) != manifest["root"]:
        raise GateError(
            LINEAGE,
            f"{called}: expected the manifest's root to be the hash of its files, got another",
            fix,
        )


def _outputs(entries: list[Mapping[str, Any]]) -> tuple[Output, ...]:
    return tuple(Output(str(entry["path"]), str(entry["md5"])) for entry in entries)
