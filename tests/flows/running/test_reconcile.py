"""Which flow runs a real server has as crashed once nothing can run any more."""

from collections import Counter
from collections.abc import Iterator

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling, Completed, Failed, Pending, Running, Scheduled
from prefect.testing.utilities import prefect_test_harness

from flows.running.reconcile import pool_exists, reconcile

# The server answers in pages of 3.
PAGE = 3


@flow
def work() -> None:
    pass


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    """A server of this test alone, with a database of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_API_DEFAULT_LIMIT", str(PAGE))
        with prefect_test_harness(server_startup_timeout=120):
            yield str(PREFECT_API_URL.value())


@pytest.mark.slow
def test_what_was_interrupted_is_crashed_and_the_rest_stays(api: str) -> None:
    interrupted = [Running, Pending, Cancelling, Running, Running, Running, Running]
    with SyncPrefectClient(api) as client:
        runs = [client.create_flow_run(work, state=state()) for state in interrupted]
        others = [client.create_flow_run(work, state=s()) for s in (Scheduled, Completed, Failed)]
        assert len(client.read_flow_runs()) == PAGE
        before = [client.read_flow_run(run.id).state for run in others]
        # Each is named once, though they fill three pages.
        assert Counter(reconcile(api)) == Counter(run.name for run in runs)
        assert {client.read_flow_run(run.id).state.type for run in runs} == {"CRASHED"}
        assert [client.read_flow_run(run.id).state for run in others] == before
    assert reconcile(api) == []
    assert not pool_exists(api, "nobody's")
