"""The torchrun agent of one node: it starts the ranks of a run here, and restarts them.

One machine needs nothing but `python -m pipelines.train`. Several machines share the
directory of the run (checkpoints, data) over a network file system. The first
one needs to know how many there are and where they meet:

    ENIGMA_NODES=2 ENIGMA_RENDEZVOUS=node0:29500 python -m pipelines.train

and every other machine joins: `enigma join runs/<fingerprint>`.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipelines.base.errors import UserError
from pipelines.runs.directory import RunConfig, RunDirectory

MAX_RESTARTS = 2
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOOK_INTERVAL_S = 5.0

logger = logging.getLogger(__name__)


def nodes_asked_for(ranks: int) -> tuple[int, str]:
    """Read `ENIGMA_NODES` and `ENIGMA_RENDEZVOUS`.

    Args:
        ranks: Ranks of the run; every node runs the same number.

    Returns:
        How many nodes, and where they meet: HOST:PORT, empty for one node.

    Raises:
        UserError: If a value is invalid.
    """
    text = os.environ.get("ENIGMA_NODES", "1")
    nodes = int(text) if text.isdigit() else 0
    if nodes < 1 or ranks % nodes:
        raise UserError(
            f"ENIGMA_NODES: expected a divisor of the {ranks} ranks, got {text!r}",
            "give every node the same number of ranks, or change train.ranks",
        )
    if nodes == 1:
        return 1, ""
    rendezvous = os.environ.get("ENIGMA_RENDEZVOUS", "")
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(
            f"ENIGMA_RENDEZVOUS: expected HOST:PORT for {nodes} nodes, got {rendezvous!r}",
            "name this machine as the others see it, and a free port: node0:29500",
        )
    return nodes, rendezvous


def join(path: Path) -> None:
    """Run this node's share of the ranks of a run that was started on another node.

    Args:
        path: The directory of the run, shared with the first node.

    Raises:
        UserError: If the run was started for one node, or if its ranks died.
    """
    run = RunDirectory(path)
    config = run.read_config()
    if config.nodes == 1:
        raise UserError(
            f"{path}: expected a run of several nodes, got one that was started for one node",
            "start it with ENIGMA_NODES and ENIGMA_RENDEZVOUS set (docs/training.md)",
        )
    # Only ranks need torch.
    from pipelines.runs.hardware import refuse_idle_gpus

    refuse_idle_gpus()
    code = run_agent(run, config)
    if code != 0:
        raise UserError(
            f"the ranks of this node died (exit code {code})",
            "read the log above; start the run again on its first node, then join again",
        )


def run_agent(run: RunDirectory, config: RunConfig, pass_fds: Sequence[int] = ()) -> int:
    """Run this node's ranks until they end; TERM and Ctrl-C make all ranks save and stop.

    Args:
        run: The directory of the run.
        config: Its configuration.
        pass_fds: File descriptors that the ranks keep open.

    Returns:
        The exit code of torchrun.
    """
    here = config.train.ranks // config.nodes
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *_rendezvous_options(config),
        f"--nproc-per-node={here}",
        f"--max-restarts={MAX_RESTARTS}",
        *("-m", "pipelines.training.worker", str(run.path)),
    ]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // here)))
    process = subprocess.Popen(
        command,
        # cuBLAS reads the second when it starts; without it its sums may differ from run to run.
        env={"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **os.environ, "OMP_NUM_THREADS": threads},
        # Ctrl-C at a terminal reaches this process only: the ranks are asked to save first.
        start_new_session=True,
        pass_fds=pass_fds,
    )
    with _forwarded_signals(run, process):
        return wait_for_ranks(process, config.train.rank_timeout_s)


def wait_for_ranks(process: subprocess.Popen[bytes], timeout_s: float) -> int:
    """Wait for torchrun; kill ranks that someone has stopped and that stay so for too long.

    The others would notice a stopped rank, but there may be no others. torchrun restarts the
    group after a kill.

    Args:
        process: torchrun.
        timeout_s: How long a process below it may be stopped.

    Returns:
        The exit code of torchrun.
    """
    stopped_since_s: dict[psutil.Process, float] = {}
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(LOOK_INTERVAL_S, timeout_s))
        now_s = time.monotonic()
        stopped = _stopped_below(process.pid)
        stopped_since_s = {one: stopped_since_s.get(one, now_s) for one in stopped}
        for one, since_s in stopped_since_s.items():
            if now_s - since_s >= timeout_s:
                logger.warning("rank process %d was stopped for %.0f s", one.pid, now_s - since_s)
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


def _stopped_below(process_id: int) -> set[psutil.Process]:
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(process_id).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_STOPPED:
                    found.add(process)
    return found


def _rendezvous_options(config: RunConfig) -> list[str]:
    if config.nodes == 1:
        # Not `--standalone`: its store listens on every address of the machine, and agents
        # unpickle what is in it. A file that only this user may read takes its place.
        return ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", "--local-addr=127.0.0.1"]
    options = [
        f"--nnodes={config.nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={config.rendezvous}",
        f"--rdzv-id={config.fingerprint}",
    ]
    host = config.rendezvous.rpartition(":")[0].strip("[]")
    # By default an agent announces its host name, which loopback does not answer to.
    return [*options, f"--local-addr={host}"] if host in LOOPBACK else options


@contextmanager
def _forwarded_signals(run: RunDirectory, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The first TERM or Ctrl-C asks the ranks to save and end, the second ends torchrun."""

    def stop(*_: Any) -> None:
        if run.stop_is_asked():
            process.terminate()
        run.ask_to_stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
