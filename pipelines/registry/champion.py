"""The models in production: found by their alias, checked, loaded.

Its weights are safetensors and its code is this repository's: whoever can write to the
registry can break the champion, but cannot have code of theirs run here.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.base.artifacts import sha256_file
from pipelines.base.errors import GateError, UserError
from pipelines.language_model.published import load_language_model
from pipelines.registry.names import CHAMPION, FLOW, LM, aliased
from pipelines.tracking.store import connect, store_errors, tracking_uri
from pipelines.tracking.uris import shown_uri


@dataclass(frozen=True)
class Champion:
    """A loaded version.

    Args:
        version: Its number.
        model: An `EnigmaForCausalLM` in evaluation mode.
        tokenizer: Published with it.
    """

    version: str
    model: Any
    tokenizer: Any


WEIGHTS = {LM: "model.safetensors", FLOW: "flow.safetensors"}


def champion_version(name: str = LM) -> str:
    """The version that the alias points at now.

    Raises:
        UserError: If there is none, or the store is away.
    """
    version = aliased(connect(), name, CHAMPION)
    if version is None:
        raise UserError(
            f"expected a champion of {name} in {shown_uri(tracking_uri())}, found none",
            "run `enigma register` and `enigma promote`",
        )
    return version


@contextmanager
def downloaded(name: str, number: str) -> Iterator[Path]:
    """Download a version, and compare its weights with what was registered.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        number: Its version.

    Yields:
        Its artifacts, in a directory that is gone afterwards.

    Raises:
        GateError: `weights`, if the stored weights are not those that were registered.
        UserError: If its files cannot be had.
    """
    import mlflow
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    client = connect()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            expected = client.get_model_version(name, number).tags.get("weights_sha256")
            stored = mlflow.artifacts.download_artifacts(
                f"models:/{name}/{number}", dst_path=temporary
            )
        except store_errors() as error:
            raise UserError(
                f"expected the files of {name} version {number}, got: {error}",
                "see whether the MLflow store and its artifacts are there",
            ) from None
        artifacts = Path(stored) / "artifacts"
        got = sha256_file(artifacts / "model" / WEIGHTS[name])
        if got != expected:
            raise GateError(
                "weights",
                f"{name} version {number}: registered with weights {expected}, stored are {got}",
                "`enigma rollback` to a version that is whole, and register again",
            )
        yield artifacts


def load_champion(version: str | None = None) -> Champion:
    """Download a version, compare its weights with what was registered, and load it.

    Args:
        version: Its number; None for the champion.

    Raises:
        GateError: `weights`, if the stored weights are not those that were registered.
        UserError: If there is no champion, or its files cannot be had.
    """
    number = version or champion_version()
    with downloaded(LM, number) as artifacts:
        directory = artifacts / "model"
        # The model first: it makes its type known, which the tokenizer's loader looks for.
        model = load_language_model(directory)
        from transformers import AutoTokenizer

        return Champion(number, model, AutoTokenizer.from_pretrained(directory))
