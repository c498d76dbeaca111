"""Parts of a stage in progress: finished ones are kept until the stage is done.

A stage that was killed resumes where it stopped: every finished part is a directory that
appeared by one rename. Parts do not depend on each other, so the bytes are the same for any
number of workers, on one machine or many (`pipelines/base/part_workers.py`).

    plan.json     what is being made: a fingerprint and the number of parts
    part-00000/   one finished part
"""

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.base.artifacts import read_json, remove_directory, write_json
from pipelines.base.code_hash import code_hash
from pipelines.base.errors import UserError
from pipelines.base.locks import held_lock


def part_directory(work: Path, label: str, number: int) -> Path:
    """The directory of one part."""
    return work / f"{label}-{number:05d}"


def link_or_copy(source: Path, target: Path) -> None:
    """Put a part's file into an output as well, without a copy where the disk allows it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def resumable(
    output: Path,
    work: Path | None,
    *,
    stage: str,
    fingerprint: Mapping[str, Any],
    cut: Mapping[str, int] | None = None,
) -> Iterator[Path]:
    """Begin the parts of a stage, or resume those of an unfinished run.

    Args:
        output: What the stage publishes.
        work: Where parts are kept until then; by default beside `output`.
        stage: Name of the stage; its code is part of what decides the bytes.
        fingerprint: What else decides the bytes, as JSON.
        cut: What decides, beside the fingerprint, where one part ends and the next begins.

    Yields:
        The directory for the parts. It is deleted at the end; after an exception, finished
        parts stay for the next run.

    Raises:
        UserError: If another process makes these parts, or an unfinished run of the same
            fingerprint was cut in another way.
    """
    work = work or output.with_name(f".{output.name}-work")
    facts = {**fingerprint, "code": code_hash(stage)}
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    plan = {"cut": dict(cut or {}), "fingerprint": hashlib.sha256(text.encode()).hexdigest()}
    with _only_run(work, stage):
        _begin(work, plan)
        try:
            yield work
        except BaseException:
            if not any(path.is_dir() for path in work.iterdir()):
                remove_directory(work)
            raise
        remove_directory(work)


@contextmanager
def _only_run(work: Path, stage: str) -> Iterator[None]:
    """Hold the parts of a stage; the lock is beside them, as they are renamed and deleted."""

    def refuse(holder: str) -> None:
        raise UserError(
            f"{work}: expected one run at a time, but process {holder} is running {stage}",
            "wait until it has ended, or end that process with `kill`; then run the same command "
            "again",
        )

    lock = work.with_name(f"{work.name}.lock")
    with held_lock(lock, refuse):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _begin(work: Path, plan: dict[str, Any]) -> None:
    """Write the plan; delete the parts of another one."""
    path = work / "plan.json"
    # Without a plan nobody knows of what parts are.
    before = read_json(path) if path.is_file() else {"fingerprint": None}
    if before["fingerprint"] != plan["fingerprint"]:
        remove_directory(work)
    elif before != plan:
        raise UserError(
            f"{work} holds an unfinished run: expected {before['cut']}, got {plan['cut']}",
            "finish it with the settings it started with, or discard it: "
            f"rm -r {shlex.quote(str(work))}",
        )
    write_json(path, plan)
