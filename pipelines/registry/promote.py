"""Promotion: the alias `champion` moves only to a version whose own proof holds.

The first champion passes absolute gates. A successor passes them too, and must be better
than the champion on the same items by more than chance explains. After a refusal the
champion stays.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.base.errors import GateError, UserError
from pipelines.registry import ledger
from pipelines.registry.gates import Gate, data_gates, flow_gates, lm_gates, recorded_gates
from pipelines.registry.names import CANDIDATE, CHAMPION, FLOW, aliased
from pipelines.registry.succession import succession_gates
from pipelines.registry.versions import Version, downloaded
from pipelines.tracking.store import connect, registry_lock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """A candidate, what became of it and why.

    Args:
        model: `enigma-lm` or `enigma-flow`.
        version: Its number.
        outcome: What became of it.
        gates: Every gate that was checked; of a refusal, the last one refused.
    """

    model: str
    version: str
    outcome: Literal["promoted", "champion already", "dry run", "refused"]
    gates: tuple[Gate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what `enigma promote --json` prints."""
        gates = [
            {"gate": gate.name, "passed": gate.holds, "figures": gate.figures, "fix": gate.fix}
            for gate in self.gates
        ]
        return {
            "model": self.model,
            "version": self.version,
            "outcome": self.outcome,
            "gates": gates,
        }


class RefusalError(GateError):
    """A gate refused a candidate.

    Args:
        decision: With the gate that refused as its last one.
    """

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        gate = decision.gates[-1]
        problem = f"{decision.model} version {decision.version}: {gate.figures}"
        super().__init__(gate.name, problem, gate.fix)
        self.args = (decision,)


def promote(
    name: str, version: str | None = None, *, dry_run: bool = False, allow_tie: bool = False
) -> Decision:
    """Check every gate, then make a version the champion.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        version: Its number; None for the alias `candidate`.
        dry_run: Check only.
        allow_tie: Accept a successor that is not worse, where chance may explain the difference.

    Returns:
        The decision; its outcome is never "refused".

    Raises:
        UserError: If there is no such version.
        RefusalError: At the first gate that refuses.
    """
    client = connect()
    with downloaded(client, name, version or aliased(client, name, CANDIDATE)) as candidate:
        gates = check(candidate, _absolute_gates(client, candidate))
        # One at a time: MLflow moves an alias without comparing what it replaces, and the
        # comparison must be with the champion that is replaced.
        with registry_lock(f"promote {name}"):
            champion = observe(client, name)
            if champion == candidate.number:
                logger.info("%s version %s is the champion already", name, champion)
                return Decision(name, candidate.number, "champion already", gates)
            if champion is not None:
                with downloaded(client, name, champion) as reigning:
                    found = succession_gates(
                        name, reigning.proof, candidate.proof, reigning.directory,
                        allow_tie=allow_tie,
                    )  # fmt: skip
                gates = check(candidate, found, passed=gates)
            if dry_run:
                logger.info("dry run: every gate holds; the champion stays")
                return Decision(name, candidate.number, "dry run", gates)
            why = {gate.name: gate.figures for gate in gates}
            _move(client, candidate, champion, action=ledger.PROMOTE, why=why)
            return Decision(name, candidate.number, "promoted", gates)


def rollback(name: str, *, to: str | None = None, reason: str) -> str:
    """Make an earlier champion the champion again, if it is stored as it was registered.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        to: The number of an earlier champion; None for the last one before the present.
        reason: For the ledger.

    Returns:
        The version that is champion now.

    Raises:
        UserError: If there is no earlier champion, or `to` never was one.
        RefusalError: If its files have changed since, or do not belong together.
    """
    client = connect()
    with registry_lock(f"roll back {name}"):
        current = observe(client, name)
        earlier = ledger.champions(ledger.read(), name)[:-1]
        target = to or (earlier[-1] if earlier else None)
        if target is None or target not in earlier:
            raise UserError(
                f"expected an earlier champion of {name}, got "
                f"{f'version {to}' if to else 'none'}; the ledger has {earlier or 'none'}",
                "choose one that `enigma history` lists; a version that was never champion "
                "needs `enigma promote`",
            )
        with downloaded(client, name, target) as version:
            # It passed the gates of its day. Those of today may ask for what was not known
            # then, and must not bar the way back.
            gates = check(
                version, [*data_gates(version.proof), *recorded_gates(version.proof, version.tags)]
            )
            why = {"reason": reason} | {gate.name: gate.figures for gate in gates}
            _move(client, version, current, action=ledger.ROLLBACK, why=why)
    return target


def check(
    version: Version, gates: Sequence[Gate], *, passed: Sequence[Gate] = ()
) -> tuple[Gate, ...]:
    """Log every gate, and stop at the first that refuses.

    Args:
        version: The version they judge.
        gates: To check, in order.
        passed: Those that were checked before.

    Returns:
        All gates that passed.

    Raises:
        RefusalError: With the figures of the gate.
    """
    checked = tuple(passed)
    for gate in gates:
        logger.info("%s %s: gate %s: %s", version.name, version.number, gate.name, gate.figures)
        checked += (gate,)
        if not gate.holds:
            raise RefusalError(Decision(version.name, version.number, "refused", checked))
    return checked


def observe(client: Any, name: str) -> str | None:
    """Return the champion, and record in the ledger a move that left no entry.

    A process may have been killed between the two, or somebody moved the alias by hand.
    """
    champion = aliased(client, name, CHAMPION)
    recorded = ledger.champions(ledger.read(), name)
    if champion is not None and recorded[-1:] != [champion]:
        logger.warning("%s: version %s became champion without a ledger entry", name, champion)
        ledger.append(
            {
                "action": ledger.OBSERVE,
                "model": name,
                "from": recorded[-1] if recorded else None,
                "to": champion,
                "why": {"reason": "the alias was moved without a ledger entry"},
                "evidence_sha256": {},
            }
        )
    return champion


def restore(name: str) -> str | None:
    """Point the alias at the champion of the ledger, for example after the loss of a registry.

    Returns:
        The version; None if the ledger has none.
    """
    client = connect()
    with registry_lock(f"restore {name}"):
        recorded = ledger.champions(ledger.read(), name)
        if not recorded:
            return None
        client.set_registered_model_alias(name, CHAMPION, recorded[-1])
    return recorded[-1]


def _absolute_gates(client: Any, version: Version) -> list[Gate]:
    proof = version.proof
    own = flow_gates(client, proof) if version.name == FLOW else lm_gates(proof)
    return [*own, *recorded_gates(proof, version.tags)]


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
