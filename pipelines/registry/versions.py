"""Registered versions: downloaded with their proof, and the champion loaded to generate.

Weights are safetensors and the code that loads them is this repository's: someone who can
write to the registry can break the champion, but cannot make it run other code.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.base.artifacts import sha256_file
from pipelines.base.errors import GateError, UserError
from pipelines.language_model.published import load_language_model
from pipelines.registry.gates import Proof
from pipelines.registry.names import CHAMPION, FLOW, LM, aliased
from pipelines.tracking.store import connect, store_errors, tracking_uri
from pipelines.tracking.uris import shown_uri

WEIGHTS = {LM: "model.safetensors", FLOW: "flow.safetensors"}


@dataclass(frozen=True)
class Version:
    """A version whose files are on this machine.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        number: Its number.
        directory: Where it was downloaded to.
        tags: As registered.
    """

    name: str
    number: str
    directory: Path
    tags: Mapping[str, str]

    @property
    def artifacts(self) -> Path:
        """The directory of models, proof and card."""
        return self.directory / "artifacts"

    @cached_property
    def proof(self) -> Proof:
        """What its files say about it.

        Raises:
            UserError: If a proof file is missing or damaged.
        """
        return Proof.read(self.directory, self.name)

    def check_weights(self) -> None:
        """Compare the weights with what was registered, without reading the proof.

        Raises:
            GateError: `weights`, if they differ.
        """
        expected = self.tags.get("weights_sha256")
        got = sha256_file(self.artifacts / "model" / WEIGHTS[self.name])
        if got != expected:
            raise GateError(
                "weights",
                f"{self.name} version {self.number}: registered with sha256 {expected}, got {got}",
                "return to a version that is whole with `enigma rollback`, and register again",
            )


@dataclass(frozen=True)
class Champion:
    """A language model that is ready to generate.

    Args:
        version: Its number.
        model: An `EnigmaForCausalLM` in evaluation mode.
        tokenizer: The tokenizer published with it.
    """

    version: str
    model: Any
    tokenizer: Any


@contextmanager
def downloaded(client: Any, name: str, number: str | None) -> Iterator[Version]:
    """Download a version for as long as the context lasts.

    Args:
        client: MLflow's.
        name: `enigma-lm` or `enigma-flow`.
        number: Its number; None for an alias that does not exist.

    Raises:
        UserError: If there is no such version, or its files cannot be retrieved.
    """
    import mlflow

    with tempfile.TemporaryDirectory() as temporary:
        try:
            known = client.search_model_versions(f"name = '{name}'")
            tags = {str(version.version): version.tags for version in known}
            if number is None or number not in tags:
                raise UserError(
                    f"expected {name} version {number or '(candidate)'} in the registry, "
                    "found none",
                    f"run `enigma register --model {name}`; `enigma where` lists all versions",
                )
            uri = f"models:/{name}/{number}"
            directory = Path(mlflow.artifacts.download_artifacts(uri, dst_path=temporary))
        except store_errors() as error:
            raise UserError(
                f"expected the files of {name} version {number}, got: {error}",
                "check that the MLflow store and its artifacts can be reached",
            ) from None
        yield Version(name, number, directory, tags[number])


def champion_version(name: str = LM) -> str:
    """Return the version that the alias points at now.

    Raises:
        UserError: If there is none, or the store cannot be reached.
    """
    version = aliased(connect(), name, CHAMPION)
    if version is None:
        raise UserError(
            f"expected a champion of {name} in {shown_uri(tracking_uri())}, found none",
            "run `enigma register` and `enigma promote`",
        )
    return version


def load_champion(version: str | None = None) -> Champion:
    """Download a language model, check its weights and load it.

    Args:
        version: Its number; None for the champion.

    Raises:
        GateError: `weights`, if the stored weights are not those that were registered.
        UserError: If there is no champion, or its files cannot be retrieved.
    """
    number = version or champion_version()
    with downloaded(connect(), LM, number) as found:
        found.check_weights()
        directory = found.artifacts / "model"
        # The model first: importing it registers the type that the tokenizer's loader looks up.
        model = load_language_model(directory)
        from transformers import AutoTokenizer

        return Champion(number, model, AutoTokenizer.from_pretrained(directory))
