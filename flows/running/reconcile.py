"""Correct the state of flow runs when the Prefect server starts."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_AUTH_STRING
from prefect.states import Crashed

from flows.running.notify import notify

UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
# What Prefect hands to the process of a flow run.
RUN_ID = "PREFECT__FLOW_RUN_ID"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reconciled:
    """What became of the unfinished flow runs of a pool.

    Args:
        crashed: Names of those that were marked as crashed.
        alive: Ids of those that still run, or may.
    """

    crashed: list[str]
    alive: set[UUID]


def reconcile(api: str, pool: str, worker: str, only: set[UUID] | None = None) -> Reconciled:
    """Mark as crashed the flow runs of a pool that the database has as running and nothing runs.

    Such a run was interrupted, and would hold its deployment's only slot for ever. Runs of
    other pools, and those that a person started without a pool, are none of this server's
    business. Whether a run is alive is asked of its processes and of the other workers of the
    pool; the database knows only what it was told last.

    Args:
        api: URL of the Prefect API.
        pool: The pool.
        worker: The pool's worker that belongs to this server; at the first call it does not run.
        only: Look at these runs alone.

    Returns:
        What was marked, and what still runs.
    """
    crashed, alive = [], set()
    with _client(api) as client:
        found = [run for run in _unfinished(client, pool) if only is None or run.id in only]
        here = _runs_of_this_machine() if found else set()
        elsewhere = bool(found) and _has_other_worker(client, pool, worker)
        for run in found:
            if str(run.id) in here or elsewhere:
                alive.add(run.id)
            else:
                crashed.append(run.name)
                _mark(client, run)
    return Reconciled(crashed, alive)


def _client(api: str) -> SyncPrefectClient:
    """Open a client, with the password of the server if the user has set one."""
    return SyncPrefectClient(api, auth_string=PREFECT_API_AUTH_STRING.value())


def _unfinished(client: SyncPrefectClient, pool: str) -> Iterator[FlowRun]:
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)))
    in_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    offset = 0
    # The server answers in pages, of a length that its settings may lower.
    while runs := client.read_flow_runs(
        flow_run_filter=wanted, work_pool_filter=in_pool, offset=offset
    ):
        yield from runs
        offset += len(runs)


def _runs_of_this_machine() -> set[str]:
    """The ids of the flow runs of which a process of this user runs here."""
    found: set[str] = set()
    for process in psutil.process_iter():
        try:
            # Its stages inherit it. A zombie has no environment.
            if run := process.environ().get(RUN_ID):
                found.add(run)
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue
    return found


def _has_other_worker(client: SyncPrefectClient, pool: str, own: str) -> bool:
    """Whether the server has heard from another worker of the pool, here or elsewhere.

    It judges by its own clock alone, and counts a killed worker until that has missed a few
    heartbeats. This server's own worker does not count: it is known to have ended.
    """
    try:
        workers = client.read_workers_for_work_pool(pool)
    except ObjectNotFound:
        return False
    return any(worker.status == WorkerStatus.ONLINE and worker.name != own for worker in workers)


def _mark(client: SyncPrefectClient, run: FlowRun) -> None:
    message = "interrupted: its worker had ended; start it again to resume"
    client.set_flow_run_state(run.id, Crashed(message=message), force=True)
    flow = client.read_flow(run.flow_id).name
    profile = (run.parameters or {}).get("profile", "")
    notify(f"{flow}/{profile} ({run.name}): Crashed: {message}", logger)


def pool_exists(api: str, name: str) -> bool:
    """Return whether the server has a work pool."""
    with _client(api) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            return False
    return True
