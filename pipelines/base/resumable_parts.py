"""Shards of a stage in progress: finished ones are kept until the stage is done.

A stage that is killed goes on where it was: every finished shard is a directory that
appeared by one rename. Shards do not know each other, so the bytes are the same for any
number of workers, on one machine or many (`pipelines/base/part_workers.py`).

    plan.json      what is being made: a fingerprint and the number of shards
    shard-00000/   one finished shard
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipelines.base.artifacts import read_json, write_json
from pipelines.base.code_hash import code_hash
from pipelines.base.errors import UserError
from pipelines.base.part_workers import make_shards
from pipelines.base.run_stage import progress

T = TypeVar("T")


@dataclass(frozen=True)
class ShardWork:
    """The shards of one stage.

    Args:
        directory: Where they are.
        workers: Processes that make them, where no cluster does.
    """

    directory: Path
    workers: int

    def map(
        self, label: str, function: Callable[[T, Path], None], items: Sequence[T]
    ) -> list[Path]:
        """Make the shards that are missing.

        Args:
            label: What is being done, for the progress bar and the directory.
            function: Called as `function(item, directory)`; it writes a shard's files into
                an empty directory. Where others make the shards it must be importable by name.
            items: An item a shard.

        Returns:
            The shards' directories, in the order of the items.
        """
        shards = [self.directory / f"{label}-{index:05d}" for index in range(len(items))]
        todo = [
            (item, shard) for item, shard in zip(items, shards, strict=True) if not shard.exists()
        ]
        made = make_shards(function, todo, self.workers)
        for _ in progress(made, total=len(todo), unit="shard", label=label):
            pass
        return shards


def place(source: Path, target: Path) -> None:
    """Put a shard's file into an output as well, without a copy where the disk allows it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def shard_work(
    directory: Path,
    *,
    stage: str,
    fingerprint: Mapping[str, Any],
    shards: int,
    workers: int,
    unit: str = "shards",
) -> Iterator[ShardWork]:
    """Begin or resume the shards of a stage; they are deleted once the stage is done.

    Args:
        directory: Where they are kept meanwhile.
        stage: Name of the stage; its code is part of what decides their bytes.
        fingerprint: What else decides their bytes, as JSON.
        shards: How many there are.
        workers: Processes that make them; the bytes do not depend on it.
        unit: What `shards` counts, where that is not shards.

    Yields:
        The work. On an exception the finished shards stay for the next run.

    Raises:
        UserError: If an unfinished run has another number of shards.
    """
    facts = {**fingerprint, "code": code_hash(stage)}
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    plan = {"shards": shards, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}
    path = directory / "plan.json"
    if path.is_file():
        before = read_json(path)
        if before["shards"] != shards:
            raise UserError(
                f"{directory} is an unfinished run of {before['shards']} {unit}; "
                f"this one has {shards}",
                f"finish it with the settings it was begun with, or give it up: rm -r {directory}",
            )
        if before != plan:
            shutil.rmtree(directory)
    write_json(path, plan)
    try:
        yield ShardWork(directory, workers)
    except BaseException:
        if not any(path.is_dir() for path in directory.iterdir()):
            shutil.rmtree(directory)
        raise
    shutil.rmtree(directory)
