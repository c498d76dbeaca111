"""A version is downloaded whole or refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.base.errors import GateError, UserError
from pipelines.registry.names import FLOW, LM
from pipelines.registry.versions import champion_version, downloaded, load_champion
from pipelines.tracking.store import connect


def test_a_version_comes_with_its_proof_and_its_evidence(store: Path) -> None:
    for name in (LM, FLOW):
        client = connect()
        with downloaded(client, name, "1") as version:
            version.check(client)
            assert version.proof.certificate["passed"] is True
            assert version.proof is version.proof, "it is read once"
        assert not version.directory.exists()


def test_other_content_than_registered_is_refused(store: Path) -> None:
    client = connect()
    with downloaded(client, LM, "1") as version:
        other = replace(version, tags={**version.tags, "content_sha256": "6" * 64})
        with pytest.raises(GateError, match="registered as 6666"):
            other.check(client)


@pytest.mark.parametrize("number", [None, "99"])
def test_an_unknown_version_is_refused(store: Path, number: str | None) -> None:
    with pytest.raises(UserError, match="found none"), downloaded(connect(), LM, number):
        pytest.fail("must not download")


def test_artifacts_that_are_out_of_reach_are_named_until_they_are_back(copied_store: Path) -> None:
    artifacts = copied_store / "mlartifacts"
    artifacts.rename(copied_store / "away")
    with pytest.raises(UserError, match="expected the files of enigma-lm version 1") as refusal:
        load_champion()
    assert refusal.value.fix == "check that the MLflow store and its artifacts can be reached"
    (copied_store / "away").rename(artifacts)
    with downloaded(connect(), LM, "1") as version:
        assert version.proof.certificate["passed"] is True


def test_the_champion_is_loaded_by_its_alias(store: Path) -> None:
    champion = load_champion()
    assert champion.version == champion_version() == "1"
    assert not champion.model.training
    assert champion.tokenizer.eos_token_id == champion.model.config.eos_token_id
