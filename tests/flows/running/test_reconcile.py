"""Which flow runs a real server has as crashed once nothing can run any more."""

import contextlib
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Completed, Failed, Pending, Running, Scheduled
from prefect.testing.utilities import prefect_test_harness

from flows.running.reconcile import RUN_ID, Reconciled, pool_exists, reconcile

# The server answers in pages of 3.
PAGE = 3
PASSWORD = "enigma:geheim"


@flow
def work() -> None:
    pass


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    """A server of this test alone, with a password and a database of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_API_AUTH_STRING", PASSWORD)
        patch.setenv("PREFECT_SERVER_API_DEFAULT_LIMIT", str(PAGE))
        password = temporary_settings({PREFECT_API_AUTH_STRING: PASSWORD})
        with password, prefect_test_harness(server_startup_timeout=120):
            yield str(PREFECT_API_URL.value())


POOL, WORKER = "enigma", "enigma-here"


def in_pool(client: SyncPrefectClient, pool: str, states: list[Callable[[], State]]) -> list[UUID]:
    """Runs of a deployment in a pool, in these states."""
    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    deployment = client.create_deployment(
        client.create_flow(work), f"d-{pool}", work_pool_name=pool
    )
    made = [client.create_flow_run_from_deployment(deployment) for _ in states]
    for run, state in zip(made, states, strict=True):
        if state is Cancelling:
            # The server cancels a run at once that has never started.
            client.set_flow_run_state(run.id, Running(), force=True)
        client.set_flow_run_state(run.id, state(), force=True)
    return [run.id for run in made]


@pytest.mark.slow
def test_what_was_interrupted_is_crashed_and_the_rest_stays(
    api: str, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted = [Running, Pending, Cancelling, Running, Running, Running, Running]
    with SyncPrefectClient(api, auth_string=PASSWORD) as client:
        runs = in_pool(client, POOL, interrupted)
        others = in_pool(client, POOL, [Scheduled, Completed, Failed])
        others += in_pool(client, "somebody-elses", [Running])
        others.append(client.create_flow_run(work, state=Running()).id)  # without a pool
        # A process that works for a run, as a stage whose worker has died.
        [alive] = in_pool(client, POOL, [Running])
        assert len(client.read_flow_runs()) == PAGE
        assert [client.read_flow_run(run).state.type for run in runs] == [
            state().type for state in interrupted
        ]
        before = [client.read_flow_run(run).state for run in others]
        names = Counter(client.read_flow_run(run).name for run in runs)
        with subprocess.Popen(["sleep", "60"], env={**os.environ, RUN_ID: str(alive)}) as stage:
            found = reconcile(api, POOL, WORKER)
            stage.kill()
        # Each is named once, though they fill three pages, and someone is told of each.
        assert Counter(found.crashed) == names
        assert found.alive == {alive}
        assert caplog.text.count("notification: work/ (") == len(runs)
        assert {client.read_flow_run(run).state.type for run in runs} == {"CRASHED"}
        assert [client.read_flow_run(run).state for run in others] == before
        # Another worker of the pool, by hand or on another machine, may still run it.
        client.send_worker_heartbeat(POOL, "by-hand", 30)
        assert reconcile(api, POOL, WORKER, only={alive}).alive == {alive}
        assert len(reconcile(api, POOL, "by-hand", only={alive}).crashed) == 1
    assert reconcile(api, POOL, WORKER) == Reconciled([], set())
    assert not pool_exists(api, "nobody's")
