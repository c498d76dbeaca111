"""Correct the state of flow runs when the Prefect server starts."""

from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def reconcile(api: str) -> list[str]:
    """Mark as crashed the flow runs that the server believes to be running.

    There is no worker yet, and no flow run outlives its worker. So every run that the
    database has as running was interrupted, and would hold its deployment's only slot for
    ever.

    Args:
        api: URL of the Prefect API.

    Returns:
        The names of the flow runs.
    """
    unfinished = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED))
    )
    names = []
    with SyncPrefectClient(api) as client:
        # The server answers in pages, and a run that is marked drops out of the filter.
        while runs := client.read_flow_runs(flow_run_filter=unfinished):
            for run in runs:
                _mark(client, run.id)
                names.append(run.name)
    return names


def _mark(client: SyncPrefectClient, run: UUID) -> None:
    message = "interrupted: its worker had ended; start it again to resume"
    client.set_flow_run_state(run, Crashed(message=message), force=True)


def pool_exists(api: str, name: str) -> bool:
    """Return whether the server has a work pool."""
    with SyncPrefectClient(api) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            return False
    return True
