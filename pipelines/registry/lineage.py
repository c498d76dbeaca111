"""Lineage: from a registered version back to the parquet, every file hashed again.

    enigma lineage enigma-lm@champion

Registry version -> run -> commit -> `dvc.lock` -> outputs of every stage, down to the raw
parquet. Every line that is printed has been checked; the walk stops at the first break.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from pipelines.base.artifacts import MANIFEST_NAME, read_json, sha256_file
from pipelines.base.console import tree_console
from pipelines.base.errors import GateError, UserError
from pipelines.base.run_stage import progress
from pipelines.registry import ledger
from pipelines.registry.content import LOCK_FILE, origins_of
from pipelines.registry.dvc_objects import (
    LINEAGE,
    Output,
    Stage,
    cache_directory,
    check_working_copy,
    hash_output,
    read_lock,
)
from pipelines.registry.gates import data_gates, recorded_gates
from pipelines.registry.names import CHAMPION, FLOW, MODELS, aliased
from pipelines.registry.promote import check
from pipelines.registry.versions import Version, downloaded
from pipelines.tracking.git import GitFiles
from pipelines.tracking.store import connect

SHORT = 12
REGISTER_AGAIN = "run `dvc repro`, then `enigma register` again"


@dataclass
class Walk:
    """The tree of what has been checked; each link is below the one before."""

    tree: Tree

    def step(self, text: str) -> None:
        """Add a link one level down."""
        self.tree = self.tree.add(_line("ok", "green", text))

    def leaf(self, text: str) -> None:
        """Add a link on the same level as the next one."""
        self.tree.add(_line("ok", "green", text))

    def remark(self, text: str) -> None:
        """Add a note for the reader; nothing is broken."""
        self.tree.add(_line("!", "yellow", text))


def lineage(reference: str) -> None:
    """Trace a version back to the parquet it came from, and print every link.

    Args:
        reference: `enigma-lm@champion`, `enigma-flow/3`.

    Raises:
        UserError: If there is no such version, or this is not a repository.
        GateError: At the first break, with what was expected and what was found.
    """
    name, number = resolve(reference)
    client = connect()
    root = Tree(Text(reference, style="bold"))
    walk = Walk(root)
    with _shown(root, walk), downloaded(client, name, number) as version:
        check(
            version,
            [
                *recorded_gates(version.proof, version.tags),
                *data_gates(version.proof),
                *version.use_gates(client)[1:],
            ],
        )
        walk.step(f"{name} version {number}, content {version.proof.content_sha256[:SHORT]}")
        run_id = client.get_model_version(name, number).run_id
        _show_run(client, run_id, version, walk)
        code = _check_commit(version, walk)
        lock = read_lock(version.directory / "artifacts" / "proof" / LOCK_FILE)
        walk.step(f"{LOCK_FILE} {version.proof.sha256[LOCK_FILE][:SHORT]}, {len(lock)} stages")
        _check_stages(version, lock, code, walk)


def resolve(reference: str) -> tuple[str, str]:
    """Split a reference into a model and the number of a version.

    Raises:
        UserError: If it is not a reference, or there is no such alias.
        GateError: `ledger`, if the ledger does not explain the alias `champion`.
    """
    match = re.fullmatch(r"(enigma-\w+)(?:@(\w+)|/(\d+))", reference)
    if match is None or match[1] not in MODELS:
        raise UserError(
            f"expected a reference like {MODELS[0]}@champion or {MODELS[1]}/3, got {reference!r}",
            "`enigma where` lists versions and aliases",
        )
    client = connect()
    if match[2] == CHAMPION:
        ledger.check_alias(client, match[1])
    number = match[3] or aliased(client, match[1], match[2])
    if number is None:
        raise UserError(
            f"expected a version at {reference}, found none",
            "run `enigma register` and `enigma promote`",
        )
    return match[1], number


def _show_run(client: Any, run_id: str | None, version: Version, walk: Walk) -> None:
    """Show the run. Its row can be edited, or be lost with the store: the proof has the facts."""
    from mlflow.exceptions import MlflowException

    proof = version.proof
    facts = proof.flow.get("flow_training", proof.training)
    try:
        run = client.get_run(run_id or "(none)")
    except MlflowException:
        walk.remark(
            f"run {facts.get('mlflow_run_id')} of the training is not in this store; the facts "
            "are in the proof"
        )
        return
    walk.step(f"run {run.info.run_id[:SHORT]} {run.info.run_name}, {run.info.status}")
    expected, got = facts.get("shards_root"), run.data.tags.get("shards_root")
    if got != expected:
        walk.remark(f"the run names shards_root {got}, the proof {expected}: the proof decides")


def _check_commit(version: Version, walk: Walk) -> list[GitFiles]:
    """Return the commits whose code may have made the outputs: of training and registration."""
    tags = version.proof.training
    names = {
        "trained": str(tags.get("git_commit")),
        "registered": version.tags.get("git_commit", "unknown"),
    }
    code = []
    for what, commit in names.items():
        files = GitFiles(commit)
        subject = files.subject()
        if subject is None:
            raise GateError(
                LINEAGE, f"{what} at commit {commit}: expected it in this repository, found none",
                "fetch it, or run the command in the repository in which the version was made",
            )  # fmt: skip
        code.append(files)
        if what == "trained":
            walk.step(f"commit {commit[:SHORT]} {subject}")
    if "true" in (tags.get("git_dirty"), version.tags.get("git_dirty")):
        walk.remark("the working tree had uncommitted changes; files that differ are named below")
    return code


def _check_stages(
    version: Version, lock: Mapping[str, Stage], code: list[GitFiles], walk: Walk
) -> None:
    made = {out.path: (stage, out) for stage in lock.values() for out in stage.outs}
    cache = cache_directory()
    here = read_lock(Path(LOCK_FILE)) if Path(LOCK_FILE).is_file() else {}
    checked_out = {out for stage in here.values() for out in stage.outs}
    waiting = _carried(version)
    stages = _upstream("sample_flow" if version.name == FLOW else "evaluate", lock, made)
    shown = progress(stages, total=len(stages), unit="stage", label="lineage")
    for stage in shown:
        own = _check_code(stage, made, code, walk)
        hashed = {out: hash_output(out, cache) for out in stage.outs}
        sizes = []
        for out, files in hashed.items():
            if out in checked_out:
                check_working_copy(out, files)
            _check_carried(version, waiting, out, files)
            sizes.append(f"{out.path} ({len(files)} files, {_mb(files)})")
        walk.leaf(f"{stage.name}: {own} as committed; {', '.join(sizes)}")
        if stage.name == "ingest":
            _show_parquet(hashed, walk)
    _refuse_unmade(waiting)


def _upstream(
    last: str, lock: Mapping[str, Stage], made: Mapping[str, tuple[Stage, Output]]
) -> list[Stage]:
    """Return the stage and every stage before it, from the last to the first."""
    if last not in lock:
        raise GateError(
            LINEAGE, f"{LOCK_FILE}: expected the stage {last}, got {', '.join(lock) or 'none'}",
            REGISTER_AGAIN,
        )  # fmt: skip
    order: dict[str, Stage] = {}
    waiting = [lock[last]]
    while waiting:
        stage = waiting.pop(0)
        order.pop(stage.name, None)
        order[stage.name] = stage
        sources = (_source(dep.path, made) for dep in stage.deps)
        waiting += [source[0] for source in sources if source is not None]
    return list(order.values())


def _check_code(
    stage: Stage, made: Mapping[str, tuple[Stage, Output]], code: list[GitFiles], walk: Walk
) -> str:
    """Check that a stage read what another one made, or code as it was committed."""
    own = 0
    for dep in stage.deps:
        source = _source(dep.path, made)
        if source is not None:
            if dep.path == source[1].path and dep.md5 != source[1].md5:
                raise GateError(
                    LINEAGE,
                    f"{stage.name}: expected {dep.path} with md5 {source[1].md5}, as "
                    f"{source[0].name} made it, got {dep.md5}",
                    REGISTER_AGAIN,
                )
            continue
        own += 1
        if dep.md5 not in {files.md5(dep.path) for files in code}:
            walk.remark(f"{stage.name}: {dep.path} was not as committed (md5 {dep.md5})")
    return f"{own} code paths"


def _source(path: str, made: Mapping[str, tuple[Stage, Output]]) -> tuple[Stage, Output] | None:
    """Return the stage that made a path or a directory above it; None for code."""
    places = (made.get(str(place)) for place in (Path(path), *Path(path).parents))
    return next((found for found in places if found is not None), None)


def _carried(version: Version) -> dict[str, str]:
    """Return the files of a version that stages made, and where they made them."""
    files = (path for path in version.artifacts.rglob("*") if path.is_file())
    names = [path.relative_to(version.artifacts).as_posix() for path in files]
    return origins_of(names, version.name, version.tags["profile"])


def _check_carried(
    version: Version, waiting: dict[str, str], out: Output, files: Mapping[str, Path]
) -> None:
    """Check that the files of the version are those that a stage made, and wait for them no more.

    Args:
        version: The version.
        waiting: Its files that no stage checked so far has made, and where one should have.
        out: What a stage made.
        files: Its files in DVC's cache.
    """
    made = {Path(out.path, name).as_posix(): stored for name, stored in files.items()}
    for file in [file for file, place in waiting.items() if place in made]:
        place = waiting.pop(file)
        expected, got = sha256_file(made[place]), sha256_file(version.artifacts / file)
        if got != expected:
            raise GateError(
                LINEAGE,
                f"{file}: expected sha256 {expected}, as a stage made {place}, got {got}",
                REGISTER_AGAIN,
            )


def _refuse_unmade(waiting: Mapping[str, str]) -> None:
    """Refuse a version that carries a file that no stage made, though one should have."""
    for file, place in waiting.items():
        raise GateError(
            LINEAGE, f"{file}: expected a stage that made {place}, found none", REGISTER_AGAIN
        )


def _show_parquet(hashed: Mapping[Output, Mapping[str, Path]], walk: Walk) -> None:
    for out, files in hashed.items():
        manifest = read_json(files[MANIFEST_NAME])
        branch = walk.tree.children[-1]
        for entry in manifest["files"]:
            text = f"{out.path}/{entry['path']} sha256 {entry['sha256'][:SHORT]}"
            branch.add(_line("ok", "green", text))
        for source in manifest["sources"]:
            branch.add(Text(f"from {source['name']} sha256 {source['sha256'][:SHORT]}"))


def _mb(files: Mapping[str, Path]) -> str:
    return f"{sum(path.stat().st_size for path in files.values()) / 1e6:.2f} MB"


@contextmanager
def _shown(root: Tree, walk: Walk) -> Iterator[None]:
    """Print the tree at the end, with the break if there is one."""
    console = tree_console()
    try:
        yield
    except GateError as error:
        walk.tree.add(_line("BROKEN", "bold red", error.problem))
        raise
    finally:
        console.print(root)


def _line(mark: str, style: str, text: str) -> Text:
    return Text.assemble((mark, style), " ", text)
