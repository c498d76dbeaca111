"""Promotion: the alias `champion` moves only to a version whose own proof holds.

The first champion passes absolute gates; a successor passes them too, and must be better
than the champion on the same items by more than chance explains. A refusal is a
`GateError` that names the gate and its figures; the champion stays.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipelines.base.errors import GateError, UserError
from pipelines.registry import ledger
from pipelines.registry.gates import Gate, Proof, data_gates, flow_gates, lm_gates, recorded_gates
from pipelines.registry.names import CANDIDATE, CHAMPION, FLOW, aliased
from pipelines.registry.succession import succession_gates
from pipelines.tracking.store import connect, local_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """A version with its files at hand.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        number: Its number.
        directory: Where it was downloaded to.
        tags: As registered.
        proof: Read from its files.
    """

    name: str
    number: str
    directory: Path
    tags: Mapping[str, str]
    proof: Proof


def promote(
    name: str, version: str | None = None, *, dry_run: bool = False, allow_tie: bool = False
) -> bool:
    """Check every gate, then make a version the champion.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        version: Which one; None for the alias `candidate`.
        dry_run: Check only.
        allow_tie: Take a successor that is not worse, where chance may explain the difference.

    Returns:
        Whether the alias moved.

    Raises:
        UserError: If there is no such version.
        GateError: For the first gate that refuses.
    """
    client = connect()
    with downloaded(client, name, version or aliased(client, name, CANDIDATE)) as candidate:
        gates = [*_absolute_gates(client, candidate)]
        check(candidate, gates)
        # One at a time: MLflow's own move is no swap, and the comparison must be with
        # the champion that is replaced.
        with FileLock(local_state("promotion.lock")):
            champion = observe(client, name)
            if champion == candidate.number:
                logger.info("%s version %s is the champion already", name, champion)
                return False
            if champion is not None:
                with downloaded(client, name, champion) as reigning:
                    found = succession_gates(
                        name, reigning.proof, candidate.proof, reigning.directory,
                        allow_tie=allow_tie,
                    )  # fmt: skip
                check(candidate, found)
                gates += found
            if dry_run:
                logger.info("dry run: every gate holds; the champion stays")
                return False
            why = {gate.name: gate.figures for gate in gates}
            _move(client, candidate, champion, action=ledger.PROMOTE, why=why)
            return True


def rollback(name: str, *, to: str | None = None, reason: str) -> str:
    """Make an earlier champion the champion again, if it is stored as it was registered.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        to: Which earlier champion; None for the one before this.
        reason: For the ledger.

    Returns:
        The version that is champion now.

    Raises:
        UserError: If there is no earlier champion, or `to` was never one.
        GateError: If its files have changed since, or do not belong together.
    """
    client = connect()
    with FileLock(local_state("promotion.lock")):
        current = observe(client, name)
        earlier = ledger.champions(ledger.read(), name)[:-1]
        target = to or (earlier[-1] if earlier else None)
        if target is None or target not in earlier:
            raise UserError(
                f"expected an earlier champion of {name}, got "
                f"{f'version {to}' if to else 'none'}; the ledger has {earlier or 'none'}",
                "`enigma history` lists them; a version that was never champion is promoted",
            )
        with downloaded(client, name, target) as version:
            # It passed the gates of its day; those of today may ask for what was not
            # known then, and a way back must not be barred by that.
            gates = [*data_gates(version.proof), *recorded_gates(version.proof, version.tags)]
            check(version, gates)
            why = {"reason": reason} | {gate.name: gate.figures for gate in gates}
            _move(client, version, current, action=ledger.ROLLBACK, why=why)
    return target


def check(version: Version, gates: list[Gate]) -> None:
    """Log every gate, and stop at the first that refuses.

    Raises:
        GateError: With its figures.
    """
    for gate in gates:
        logger.info("%s %s: gate %s: %s", version.name, version.number, gate.name, gate.figures)
        if not gate.holds:
            raise GateError(
                gate.name, f"{version.name} version {version.number}: {gate.figures}", gate.fix
            )


def observe(client: Any, name: str) -> str | None:
    """The champion; a move that left no line in the ledger gets one.

    A process may have been killed between the two, or somebody moved the alias by hand.
    """
    champion = aliased(client, name, CHAMPION)
    recorded = ledger.champions(ledger.read(), name)
    if champion is not None and recorded[-1:] != [champion]:
        logger.warning("%s: version %s became champion without a line", name, champion)
        ledger.append(
            {
                "action": ledger.OBSERVE,
                "model": name,
                "from": recorded[-1] if recorded else None,
                "to": champion,
                "why": {"reason": "found so; whoever moved the alias left no line"},
                "evidence_sha256": {},
            }
        )
    return champion


def restore(name: str) -> str | None:
    """Point the alias at the champion of the ledger, as after the loss of a registry.

    Returns:
        The version; None if the ledger has none.
    """
    client = connect()
    with FileLock(local_state("promotion.lock")):
        recorded = ledger.champions(ledger.read(), name)
        if not recorded:
            return None
        client.set_registered_model_alias(name, CHAMPION, recorded[-1])
    return recorded[-1]


@contextmanager
def downloaded(client: Any, name: str, number: str | None) -> Iterator[Version]:
    """Bring a version's files here for as long as the context lasts.

    Raises:
        UserError: If there is no such version, or a proof file is missing or damaged.
    """
    import mlflow

    if number is None or not _exists(client, name, number):
        raise UserError(
            f"expected {name} version {number or '(candidate)'} in the registry, found none",
            f"run `enigma register --model {name}`; `enigma where` lists what there is",
        )
    with tempfile.TemporaryDirectory() as temporary:
        uri = f"models:/{name}/{number}"
        directory = Path(mlflow.artifacts.download_artifacts(uri, dst_path=temporary))
        tags = client.get_model_version(name, number).tags
        yield Version(name, number, directory, tags, Proof.read(directory, name))


def _absolute_gates(client: Any, version: Version) -> Iterator[Gate]:
    proof = version.proof
    yield from flow_gates(client, proof) if version.name == FLOW else lm_gates(proof)
    yield from recorded_gates(proof, version.tags)


def _move(
    client: Any, version: Version, before: str | None, *, action: str, why: Mapping[str, str]
) -> None:
    """Move the alias, then write the ledger; the caller holds the lock."""
    client.set_registered_model_alias(version.name, CHAMPION, version.number)
    ledger.append(
        {
            "action": action,
            "model": version.name,
            "from": before,
            "to": version.number,
            "why": dict(why),
            "evidence_sha256": {**version.proof.sha256, "content": version.proof.content_sha256},
        }
    )
    logger.info("%s: champion %s -> %s", version.name, before, version.number)


def _exists(client: Any, name: str, version: str) -> bool:
    return any(str(v.version) == version for v in client.search_model_versions(f"name = '{name}'"))
