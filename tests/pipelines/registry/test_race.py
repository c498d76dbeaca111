"""Promoters at once, as processes: one outcome, and ledger and alias agree."""

import multiprocessing
from collections import Counter
from multiprocessing.managers import ListProxy
from pathlib import Path
from threading import Barrier

import pytest
from mlflow.tracking import MlflowClient

from pipelines.base.errors import GateError
from pipelines.registry import ledger
from pipelines.registry.names import LM
from pipelines.registry.promote import promote
from pipelines.registry.register import register
from pipelines.tracking.store import tracking_uri
from tests.finished import write_lock, write_losses

# Half of them for each candidate: as many as a few cores run at once, as more would only queue.
PROMOTERS = 8


def race(version: str, start: Barrier, outcomes: "ListProxy[tuple[str, str]]") -> None:
    start.wait()
    try:
        outcomes.append((version, promote(LM, version).outcome))
    except GateError as error:
        outcomes.append((version, error.gate))


@pytest.mark.slow
def test_promoters_at_once_have_one_outcome(copied_store: Path) -> None:
    """Two candidates, each better than the champion, neither better than the other."""
    write_losses(copied_store, better_by=0.0201, noise=-0.01)
    write_lock(copied_store)
    assert register(LM) == "3"
    before = len(ledger.read())
    # Fresh processes, but what they need is imported once, MLflow's stores among it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "mlflow.store.artifact.models_artifact_repo",
            "mlflow.store.model_registry.sqlalchemy_store",
            "mlflow.store.tracking.sqlalchemy_store",
            "scipy.stats",
            "pipelines.registry.promote",
            "tests.pipelines.registry.test_race",
        ]
    )
    with context.Manager() as manager:
        outcomes = manager.list()
        start = manager.Barrier(PROMOTERS)
        promoters = [
            context.Process(target=race, args=(str(2 + number % 2), start, outcomes))
            for number in range(PROMOTERS)
        ]
        for promoter in promoters:
            promoter.start()
        for promoter in promoters:
            promoter.join(240)
        found = Counter(outcomes)
    client = MlflowClient(tracking_uri())
    winner = str(client.get_model_version_by_alias(LM, "champion").version)
    loser = {"2": "3", "3": "2"}[winner]
    each = PROMOTERS // 2
    assert found == {
        (winner, "promoted"): 1,
        (winner, "champion already"): each - 1,
        (loser, "successor"): each,
    }
    [entry] = ledger.read()[before:]
    assert (entry["from"], entry["to"]) == ("1", winner)
    assert ledger.champions(ledger.read(), LM) == ["1", winner]
