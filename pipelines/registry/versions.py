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
from pipelines.registry import ledger
from pipelines.registry.content import content_of_version, hash_content
from pipelines.registry.evidence.keys import Trust, trust
from pipelines.registry.evidence.version import VERSION_FILE, evidence_gates, is_signed
from pipelines.registry.gates import Gate, Proof
from pipelines.registry.names import CODE, LM
from pipelines.tracking.store import connect, registry_lock, store_errors, tracking_uri
from pipelines.tracking.uris import shown_uri

BACK = (
    "restore the stored files; or run `enigma rollback`, `enigma register` and `enigma promote` (a "
    "first champion has none before it: delete its version in MLflow instead)"
)


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

    @cached_property
    def trust(self) -> Trust:
        """The keys whose signatures count."""
        return trust()

    @property
    def content_sha256(self) -> str:
        """The hash of all files that decide how it behaves, without reading the proof."""
        files = content_of_version(self.directory, code_name=CODE[self.name].name)
        return hash_content(files)

    @property
    def evidence_sha256(self) -> dict[str, str]:
        """What the ledger records of it: the proof's files, the content, the signed statement."""
        proof = self.artifacts / "proof"
        found = {path.name: sha256_file(path) for path in sorted(proof.glob("*"))}
        found["content"] = self.content_sha256
        if is_signed(self.directory):
            found["statement"] = sha256_file(self.directory / VERSION_FILE)
        return found

    def evidence_gates(self) -> list[Gate]:
        """Return the gates on its signed statement."""
        return evidence_gates(self.directory, self.trust, name=self.name, tags=self.tags)

    def record_gate(self, record: Mapping[str, Any]) -> Gate:
        """Return the gate that compares it with what the ledger recorded when it moved.

        Args:
            record: With `evidence_sha256`.
        """
        recorded, got = record.get("evidence_sha256", {}), self.evidence_sha256
        differ = sorted(name for name in recorded if recorded[name] != got.get(name))
        return Gate(
            "ledger_evidence",
            not differ,
            ", ".join(f"{name} {str(got.get(name))[:12]}" for name in differ)
            or f"{len(recorded)} hashes as recorded",
            ", ".join(f"{name} {recorded[name][:12]}" for name in differ) or "as recorded",
            "go back to another version with `enigma rollback --to`, or restore the stored files",
        )

    def use_gates(self, client: Any, *, unsigned: bool = False) -> list[Gate]:
        """Return the gates that are checked whenever it is used as champion.

        Args:
            client: MLflow's.
            unsigned: Accept it without a signature. One that was accepted so by a promotion
                passes in any case: the signed ledger has the hash of its content.
        """
        registered = self.tags.get("content_sha256")
        content = self.content_sha256
        gates = [
            Gate("content", content == registered, f"stored as {content[:12]}",
                 f"registered as {str(registered)[:12]}", BACK),
        ]  # fmt: skip
        record = None if unsigned else ledger.recorded(client, self.name)
        if record is not None and record["version"] != self.number:
            record = None
        # A line without the content's hash vouches for nothing.
        vouched = record is not None and "content" in record["evidence_sha256"]
        if is_signed(self.directory) or not (unsigned or vouched):
            gates += self.evidence_gates()
        if record is not None:
            gates.append(self.record_gate(record))
        return gates

    def check(self, client: Any) -> None:
        """Refuse a version that is not as it was registered, signed and promoted.

        Raises:
            GateError: At the first gate that refuses.
        """
        for gate in self.use_gates(client):
            if not gate.holds:
                problem = f"{self.name} version {self.number}: {gate.comparison}"
                raise GateError(gate.name, problem, gate.fix)


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
            if not (directory / "artifacts").is_dir():
                # MLflow downloads nothing from a directory that is gone, and says so in its log.
                raise FileNotFoundError("no files in their place")
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
        GateError: `ledger`, if the ledger does not explain the alias.
    """
    client = connect()
    try:
        record = ledger.check_alias(client, name)
    except GateError:
        # A promotion in progress has moved the alias and is about to write the ledger.
        with registry_lock("read the champion"):
            record = ledger.check_alias(client, name)
    if record is None:
        raise UserError(
            f"expected a champion of {name} in {shown_uri(tracking_uri())}, found none",
            "run `enigma register` and `enigma promote`",
        )
    return str(record["version"])


def load_champion(version: str | None = None) -> Champion:
    """Download a language model, check all of its files and load it.

    Args:
        version: Its number; None for the champion.

    Raises:
        GateError: If it is not as it was registered, signed and promoted.
        UserError: If there is no champion, or its files cannot be retrieved.
    """
    number = version or champion_version()
    client = connect()
    with downloaded(client, LM, number) as found:
        found.check(client)
        directory = found.artifacts / "model"
        # The model first: importing it registers the type that the tokenizer's loader looks up.
        model = load_language_model(directory)
        from transformers import AutoTokenizer

        return Champion(number, model, AutoTokenizer.from_pretrained(directory))
