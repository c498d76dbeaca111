"""Make the parts of a stage: in processes of this machine, or on the workers of a Dask cluster.

`DASK_SCHEDULER_ADDRESS`, Dask's own setting, names the cluster (the group `dask`). Its
workers run the same function for a part as a process here does. They must have the same
code and versions, one thread each, and the directories of the project under the same path:
all three are checked, as the bytes of a part depend on them.
"""

import contextlib
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipelines.base.artifacts import publish_directory
from pipelines.base.code_hash import installed_code
from pipelines.base.errors import UserError
from pipelines.base.resumable_parts import part_directory
from pipelines.base.run_stage import progress

T = TypeVar("T")
MakePart = Callable[[T, Path], None]

CLUSTER = "DASK_SCHEDULER_ADDRESS"


def map_parts(
    function: MakePart[T], items: Sequence[T], work: Path, *, label: str, workers: int
) -> list[Path]:
    """Make the parts that are missing.

    Args:
        function: Called as `function(item, directory)`; it writes a part's files into an
            empty directory. It must be importable by name where other processes run it.
        items: One item per part.
        work: Where the parts are kept (`pipelines.base.resumable_parts.resumable`).
        label: What is being done, for the progress bar and the directories.
        workers: Processes of this machine; a cluster has its own number.

    Returns:
        The directories of the parts, in the order of the items.

    Raises:
        UserError: If a process is killed, or the cluster cannot be reached or cannot make the
            parts of this process.
    """
    parts = [part_directory(work, label, number) for number in range(len(items))]
    todo = [(item, part) for item, part in zip(items, parts, strict=True) if not part.exists()]
    if todo:
        made = _make(function, todo, workers)
        for _ in progress(made, total=len(todo), unit="part", label=label):
            pass
    return parts


def _make(function: MakePart[T], todo: Sequence[tuple[T, Path]], workers: int) -> Iterator[None]:
    """Make parts in any order; yield after each."""
    address = os.environ.get(CLUSTER)
    if not address and (workers == 1 or len(todo) < 2):
        for item, part in todo:
            _make_part(function, item, part)
            yield
        return
    with _cluster(address) if address else _processes(workers) as (pool, home):
        futures = [pool.submit(_make_part, function, item, part, home) for item, part in todo]
        for future in as_completed(futures):
            future.result()
            yield


@dataclass(frozen=True)
class _Home:
    """What a worker of a cluster must share with the process that it works for.

    Args:
        directory: Working directory; the paths of items are relative to it.
        code: `pipelines.base.code_hash.installed_code`.
    """

    directory: Path
    code: str


def _make_part(function: MakePart[T], item: T, part: Path, home: _Home | None = None) -> None:
    with contextlib.ExitStack() as stack:
        if home is not None:
            _check_worker(home, part)
            # A worker has one thread: no other sees this change of directory.
            stack.enter_context(contextlib.chdir(home.directory))
        # A worker that was lost may still have finished the part.
        if not part.exists():
            function(item, stack.enter_context(publish_directory(part)))


def _check_worker(home: _Home, part: Path) -> None:
    host = socket.gethostname()
    if not (home.directory / part.parent).is_dir():
        raise UserError(
            f"worker on {host}: expected the directory {home.directory / part.parent}, found none",
            "mount the project's file system there under the same path",
        )
    if installed_code() != home.code:
        raise UserError(
            f"worker on {host}: expected the stage's code and its versions of numpy, pyarrow "
            "and tokenizers, got others",
            "install the same commit there with `-c constraints.txt`, and restart the worker",
        )


def _end_with_the_stage() -> None:
    """Let a worker end if its stage is killed, or it would make old parts for the next run."""

    def watch() -> None:
        if stage := multiprocessing.parent_process():
            stage.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[tuple[Executor, None]]:
    # Not fork: Arrow and the tokenizer run threads.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, context, _end_with_the_stage) as pool:
            yield pool, None
    except BrokenProcessPool as error:
        raise UserError(
            f"expected {workers} processes to make the parts, got one that was killed",
            "if memory ran out, lower `workers` of the profile, each of which holds a part; the "
            "same command resumes",
        ) from error


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[tuple[Executor, _Home]]:
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise UserError(
            f"{CLUSTER} names a Dask cluster; expected the package distributed, found none",
            "uv pip install -c constraints.txt --group dask, or unset the variable",
        ) from error
    try:
        client = Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{CLUSTER}: expected a Dask scheduler at {address!r}, found none ({error})",
            "start one with `dask scheduler`, correct the address, or unset the variable",
        ) from error
    with client:
        threads = client.nthreads()
        if not threads or max(threads.values()) > 1:
            raise UserError(
                f"{address}: expected workers with one thread each, got "
                f"{sorted(threads.values()) or 'no worker'} (threads of each)",
                f"start them with `dask worker {address} --nworkers -1 --nthreads 1`",
            )
        try:
            # Not pure: a call matters for the files that it writes, not for its value.
            with client.get_executor(pure=False) as pool:
                yield pool, _Home(Path.cwd(), installed_code())
        except (CancelledError, KilledWorker) as error:
            raise UserError(
                f"{address}: expected the cluster to finish the parts, got "
                f"{type(error).__name__} ({error})",
                "read the workers' logs (a part may need more than their --memory-limit), then run "
                "the same command to resume",
            ) from error
