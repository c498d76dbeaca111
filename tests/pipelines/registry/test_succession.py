"""A successor must be better on the same items, by more than chance explains."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from pipelines.base.errors import GateError
from pipelines.data.shards import ShardReader
from pipelines.language_model.losses import Losses, evaluation_set_sha256
from pipelines.registry.gates import Gate, Proof
from pipelines.registry.names import FLOW, LM
from pipelines.registry.promote import promote, rollback
from pipelines.registry.succession import succession_gates
from pipelines.tracking.store import tracking_uri
from tests.support import make_tiny_shards


@pytest.fixture
def directory(store: Path) -> Path:
    """The files of the first champion."""
    model = MlflowClient(tracking_uri()).get_model_version(LM, "1")
    [found] = store.glob(f"mlartifacts/**/{model.source.removeprefix('models:/')}")
    return found / "artifacts"


@pytest.fixture
def champion(directory: Path) -> Proof:
    return Proof.read(directory, LM)


def candidate(champion: Proof, *, shift: float, noise: float = 0.02) -> Proof:
    rng = np.random.default_rng(3)
    units = champion.losses.units
    change = shift + noise * rng.normal(size=len(units))
    losses = Losses(champion.losses.document, units, champion.losses.loss_nats + change * units)
    return dataclasses.replace(champion, losses=losses)


def last(gates: list[Gate]) -> Gate:
    return gates[-1]


@pytest.mark.parametrize(
    ("shift", "allow_tie", "holds"),
    [
        (-0.05, False, True),
        (0.0, False, False),
        (0.0, True, True),
        (0.05, False, False),
        (0.05, True, False),
    ],
)
def test_only_what_is_better_succeeds(champion, directory, shift, allow_tie, holds) -> None:
    proof = candidate(champion, shift=shift)
    gate = last(succession_gates(LM, champion, proof, directory, allow_tie=allow_tie))
    assert gate.name == "successor"
    assert gate.holds is holds
    assert "95 % interval" in gate.figures
    assert "40 documents" in gate.figures


def test_another_evaluation_set_is_no_ground_for_a_comparison(champion, directory) -> None:
    other = {"shards_root": "5" * 64, "sha256": "7" * 64}
    evaluation = {**champion.evaluation, "evaluation_set": other}
    proof = dataclasses.replace(candidate(champion, shift=-0.05), evaluation=evaluation)
    gate = last(succession_gates(LM, champion, proof, directory, allow_tie=True))
    assert (gate.name, gate.holds) == ("evaluation_set", False)
    assert "7777" in gate.bound
    assert "eeee" in gate.figures
    assert "could not be scored again" in gate.figures


def test_the_champion_is_scored_on_the_candidates_set_where_its_shards_are(
    champion, directory, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reader = ShardReader(make_tiny_shards(), "test")
    name = evaluation_set_sha256(reader, np.arange(len(reader)))
    evaluation = {**champion.evaluation, "evaluation_set": {"sha256": name}}
    items = np.array(["1"] * len(reader), dtype=object)
    units = np.full(len(reader), 15.0)
    for loss, holds in ((0.5, True), (30.0, False)):
        losses = Losses(items, units, loss * units)
        proof = dataclasses.replace(champion, losses=losses, evaluation=evaluation)
        gates = succession_gates(LM, champion, proof, directory, allow_tie=False)
        assert "the champion was scored on the candidate's" in gates[0].figures
        assert last(gates).name == "successor"
        assert last(gates).holds is holds


def test_a_champion_of_an_older_schema_can_be_succeeded(champion, directory, tmp_path) -> None:
    """Its parameters may lack what is asked for today: nothing of them is needed."""
    old = tmp_path / "params.yaml"
    old.write_text("profile: sanguo\nprofiles: {sanguo: {train: {ranks: 1}}}\n", encoding="utf-8")
    reigning = dataclasses.replace(champion, params_file=old)
    proof = candidate(champion, shift=-0.05)
    assert last(succession_gates(LM, reigning, proof, directory, allow_tie=False)).holds


def test_a_champion_without_losses_is_scored_or_the_candidate_refused(champion, directory) -> None:
    old = dataclasses.replace(champion, losses=None)
    proof = candidate(champion, shift=-0.05)
    gate = last(succession_gates(LM, old, proof, directory, allow_tie=True))
    assert (gate.name, gate.holds) == ("evaluation_set", False)


@pytest.mark.parametrize("name", [LM, FLOW])
def test_a_champion_that_is_better_stays(store: Path, name: str) -> None:
    """Version 2 is champion for a moment; version 1, which is worse, may not succeed it."""
    assert promote(name).outcome == "promoted"
    try:
        with pytest.raises(GateError, match=r"against the champion, 95 % interval") as refusal:
            promote(name, "1", allow_tie=True)
        assert refusal.value.gate == "successor"
        assert "+0.0" in str(refusal.value)
    finally:
        assert rollback(name, reason="the end of a test") == "1"
