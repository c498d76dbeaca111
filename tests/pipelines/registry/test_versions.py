"""A version is downloaded whole or refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.base.errors import GateError, UserError
from pipelines.registry.names import FLOW, LM
from pipelines.registry.versions import champion_version, downloaded, load_champion
from pipelines.tracking.store import connect


def test_a_version_comes_with_its_proof_and_its_weights(store: Path) -> None:
    for name in (LM, FLOW):
        with downloaded(connect(), name, "1") as version:
            version.check_weights()
            assert version.proof.certificate["passed"] is True
            assert version.proof is version.proof, "it is read once"
        assert not version.directory.exists()


def test_other_weights_than_registered_are_refused(store: Path) -> None:
    with downloaded(connect(), LM, "1") as version:
        other = replace(version, tags={**version.tags, "weights_sha256": "6" * 64})
        with pytest.raises(GateError, match="registered with sha256 6666"):
            other.check_weights()


def test_the_proof_is_no_condition_of_using_a_version(store: Path) -> None:
    """A version from before a proof file was introduced can still be loaded."""
    with downloaded(connect(), LM, "1") as version:
        shutil.rmtree(version.artifacts / "proof")
        version.check_weights()


@pytest.mark.parametrize("number", [None, "99"])
def test_an_unknown_version_is_refused(store: Path, number: str | None) -> None:
    with pytest.raises(UserError, match="found none"), downloaded(connect(), LM, number):
        pytest.fail("must not download")


def test_the_champion_is_loaded_by_its_alias(store: Path) -> None:
    champion = load_champion()
    assert champion.version == champion_version() == "1"
    assert not champion.model.training
    assert champion.tokenizer.eos_token_id == champion.model.config.eos_token_id
