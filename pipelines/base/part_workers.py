"""Who makes the shards of a stage: processes of this machine, or the workers of a Dask cluster.

`DASK_SCHEDULER_ADDRESS`, Dask's own setting, names the cluster (the extra `dask`). Its
workers run the same function for a shard as a process here does. They must have the same
code and versions, one thread each, and the directories of the project under the same path:
each of the three is checked, as the bytes of a shard hang on them.
"""

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipelines.base.artifacts import publish_directory
from pipelines.base.code_hash import installed_code
from pipelines.base.errors import UserError

T = TypeVar("T")
MakeShard = Callable[[T, Path], None]

CLUSTER = "DASK_SCHEDULER_ADDRESS"


def make_shards(
    function: MakeShard[T], jobs: Sequence[tuple[T, Path]], workers: int
) -> Iterator[None]:
    """Make shards, in any order.

    Args:
        function: Called as `function(item, directory)`; importable by name, unless this
            process makes all shards itself.
        jobs: Items, and where the shard of each shall appear.
        workers: Processes of this machine; a cluster has its own number.

    Yields:
        Once a finished shard.

    Raises:
        UserError: If the cluster cannot be reached or cannot make the shards of this process.
    """
    address = os.environ.get(CLUSTER)
    if not jobs:
        return
    if not address and (workers == 1 or len(jobs) < 2):
        for item, shard in jobs:
            _make_shard(function, item, shard)
            yield
        return
    with _cluster(address) if address else _processes(workers) as (pool, home):
        futures = [pool.submit(_make_shard, function, item, shard, home) for item, shard in jobs]
        for future in as_completed(futures):
            future.result()
            yield


@dataclass(frozen=True)
class _Home:
    """What a worker elsewhere must have in common with the process that asks it.

    Args:
        directory: Working directory, from which the paths of items lead.
        code: `pipelines.base.code_hash.installed_code`.
    """

    directory: Path
    code: str


def _make_shard(function: MakeShard[T], item: T, shard: Path, home: _Home | None = None) -> None:
    with contextlib.ExitStack() as stack:
        if home is not None:
            _check_worker(home, shard)
            # The one thread of a worker: no other is led astray.
            stack.enter_context(contextlib.chdir(home.directory))
        # A worker that was lost may have finished the shard all the same.
        if not shard.exists():
            function(item, stack.enter_context(publish_directory(shard)))


def _check_worker(home: _Home, shard: Path) -> None:
    host = socket.gethostname()
    if not (home.directory / shard.parent).is_dir():
        raise UserError(
            f"worker on {host}: expected the directory {home.directory / shard.parent}, found none",
            "mount the project's file system there under the same path",
        )
    if installed_code() != home.code:
        raise UserError(
            f"worker on {host}: expected the code and the versions of numpy, pyarrow and "
            "tokenizers of the stage, got others",
            "install the same commit there with `-c constraints.txt`, and start the worker again",
        )


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[tuple[Executor, None]]:
    # Not fork: Arrow and the tokenizer have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield pool, None


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[tuple[Executor, _Home]]:
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise UserError(
            f"{CLUSTER} names a Dask cluster; expected the package distributed, found none",
            "pip install -c constraints.txt '.[dask]', or unset the variable",
        ) from error
    try:
        client = Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{CLUSTER}: expected a Dask scheduler at {address!r}, reached none ({error})",
            "start it with `dask scheduler`, correct the address, or unset the variable",
        ) from error
    with client:
        threads = client.nthreads()
        if not threads or max(threads.values()) > 1:
            raise UserError(
                f"{address}: expected workers of one thread, got "
                f"{sorted(threads.values()) or 'none'} (threads of each)",
                "start them with `dask worker --nworkers auto --nthreads 1`",
            )
        try:
            # Not pure: what counts are the files that a call writes, not its value.
            with client.get_executor(pure=False) as pool:
                yield pool, _Home(Path.cwd(), installed_code())
        except (CancelledError, KilledWorker) as error:
            raise UserError(
                f"{address}: expected the cluster to finish the shards, got "
                f"{type(error).__name__} ({error})",
                "read the workers' logs (a shard may need more than their --memory-limit), then "
                "run the same command to go on",
            ) from error
