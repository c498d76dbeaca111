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
from pipelines.registry.evidence.envelopes import SIGNATURE
from pipelines.registry.evidence.version import full_evidence_gates, is_signed
from pipelines.registry.gates import (
    Gate,
    commit_gate,
    data_gates,
    flow_gates,
    language_model_gate,
    lm_gates,
    recorded_gates,
)
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
            {
                "gate": gate.name,
                "passed": gate.holds,
                "figures": gate.figures,
                "bound": gate.bound,
                "fix": gate.fix,
            }
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
        problem = f"{decision.model} version {decision.version}: {gate.comparison}"
        super().__init__(gate.name, problem, gate.fix)
        self.args = (decision,)


def promote(
    name: str,
    version: str | None = None,
    *,
    dry_run: bool = False,
    allow_tie: bool = False,
    trust_unsigned: bool = False,
) -> Decision:
    """Check every gate, then make a version the champion.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        version: Its number; None for the alias `candidate`.
        dry_run: Check only.
        allow_tie: Accept a successor that is not worse, where chance may explain the difference.
        trust_unsigned: Accept a version, or a ledger, that is older than signatures; the ledger
            records it.

    Returns:
        The decision; its outcome is never "refused".

    Raises:
        UserError: If there is no such version.
        RefusalError: At the first gate that refuses.
        GateError: `ledger` or `signature`, if the alias or the ledger was changed by hand, or the
            ledger is on another machine.
    """
    client = connect()
    with downloaded(client, name, version or aliased(client, name, CANDIDATE)) as candidate:
        unsigned = trust_unsigned and not is_signed(candidate.directory)
        gates = check(candidate, _absolute_gates(client, candidate, unsigned=unsigned))
        # One at a time: MLflow moves an alias without comparing what it replaces, and the
        # comparison must be with the champion that is replaced.
        with registry_lock(f"promote {name}"):
            champion = _reigning(client, name, trust_unsigned=trust_unsigned)
            if champion == candidate.number and not unsigned:
                logger.info("%s version %s is the champion already", name, champion)
                return Decision(name, candidate.number, "champion already", gates)
            if champion not in {None, candidate.number}:
                with downloaded(client, name, champion) as reigning:
                    check(reigning, reigning.use_gates(client, unsigned=trust_unsigned))
                    found = succession_gates(
                        name, reigning.proof, candidate.proof, reigning.directory,
                        allow_tie=allow_tie,
                    )  # fmt: skip
                gates = check(candidate, found, passed=gates)
            if dry_run:
                logger.info("dry run: every gate holds; the champion stays")
                return Decision(name, candidate.number, "dry run", gates)
            action = ledger.TRUST if champion == candidate.number else ledger.PROMOTE
            why = {gate.name: gate.comparison for gate in gates}
            _move(
                client, candidate, champion, action=action, why=why, trust_unsigned=trust_unsigned
            )
            return Decision(name, candidate.number, "promoted", gates)


def rollback(name: str, *, to: str | None = None, reason: str, trust_unsigned: bool = False) -> str:
    """Make an earlier champion the champion again, if it is stored as it was registered.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        to: The number of an earlier champion; None for the last one before the present.
        reason: For the ledger.
        trust_unsigned: Accept a version that is older than signatures; the ledger records it.

    Returns:
        The version that is champion now.

    Raises:
        UserError: If there is no earlier champion, or `to` never was one.
        RefusalError: If its files have changed since, or do not belong together.
    """
    client = connect()
    with registry_lock(f"roll back {name}"):
        # Not compared with the ledger: this is the way back from an alias moved by hand.
        current = aliased(client, name, CHAMPION)
        moves = ledger.read(trust_unsigned=trust_unsigned)
        earlier = ledger.champions(moves, name)[:-1]
        target = to or (earlier[-1] if earlier else None)
        if target is None or target not in earlier:
            raise UserError(
                f"expected an earlier champion of {name}, got "
                f"{f'version {to}' if to else 'none'}; the ledger has {earlier or 'none'}",
                "choose one that `enigma history` lists; a version that was never champion "
                "needs `enigma promote`",
            )
        with downloaded(client, name, target) as version:
            unsigned = trust_unsigned and not is_signed(version.directory)
            # It passed the gates of its day. Those of today may ask for what was not known
            # then, and must not bar the way back.
            gates = [*data_gates(version.proof), *recorded_gates(version.proof, version.tags)]
            gates += _evidence_gates(version, unsigned=unsigned, needs_stages=False)
            gates.append(version.record_gate(_last_move(moves, name, target)))
            why = {"reason": reason}
            why |= {gate.name: gate.comparison for gate in check(version, gates)}
            _move(
                client, version, current, action=ledger.ROLLBACK, why=why,
                trust_unsigned=trust_unsigned,
            )  # fmt: skip
    return target


def check(
    version: Version, gates: Sequence[Gate], *, passed: Sequence[Gate] = ()
) -> tuple[Gate, ...]:
    """Stop at the first gate that refuses.

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
        checked += (gate,)
        if not gate.holds:
            raise RefusalError(Decision(version.name, version.number, "refused", checked))
    return checked


def restore(name: str) -> str | None:
    """Point the alias at the champion of the ledger, for example after the loss of a registry.

    Returns:
        The version; None if the ledger has none.

    Raises:
        UserError: If the version of the ledger is not in the registry any more.
    """
    client = connect()
    with registry_lock(f"restore {name}"):
        recorded = ledger.champions(ledger.read(), name)
        if not recorded:
            return None
        if not client.search_model_versions(f"name = '{name}' and version_number = {recorded[-1]}"):
            raise UserError(
                f"expected version {recorded[-1]} of {name}, the ledger's champion, in the "
                "registry, found none: it was deleted",
                f"run `enigma rollback --model {name}` for an earlier champion, or `enigma "
                f"promote --model {name}` for another version",
            )
        client.set_registered_model_alias(name, CHAMPION, recorded[-1])
    return recorded[-1]


def _reigning(client: Any, name: str, *, trust_unsigned: bool) -> str | None:
    """Return the champion, if the alias is where the ledger says."""
    if trust_unsigned and not ledger.head_path().is_file():
        return aliased(client, name, CHAMPION)
    record = ledger.check_alias(client, name)
    return None if record is None else str(record["version"])


def _absolute_gates(client: Any, version: Version, *, unsigned: bool) -> list[Gate]:
    proof = version.proof
    own = (
        [*flow_gates(proof), language_model_gate(client, proof)]
        if version.name == FLOW
        else lm_gates(proof)
    )
    recorded = [*recorded_gates(proof, version.tags), commit_gate(version.tags)]
    return [*own, *recorded, *_evidence_gates(version, unsigned=unsigned)]


def _evidence_gates(version: Version, *, unsigned: bool, needs_stages: bool = True) -> list[Gate]:
    """Return the gates on the evidence; the last ones only where the signature holds."""
    if unsigned:
        return [Gate(SIGNATURE, True, "unsigned, accepted by --trust-unsigned", "a trusted key")]
    gates = version.evidence_gates()
    if gates[1:]:
        gates += full_evidence_gates(version.directory, version.trust, needs_stages=needs_stages)
    return gates


def _last_move(moves: Sequence[Mapping[str, Any]], name: str, to: str) -> Mapping[str, Any]:
    return [move for move in moves if move["model"] == name and move["to"] == to][-1]


def _move(
    client: Any,
    version: Version,
    before: str | None,
    *,
    action: str,
    why: Mapping[str, str],
    trust_unsigned: bool,
) -> None:
    """Move the alias, then write the ledger; the caller holds the lock.

    The line is built, checked and signed before the alias moves. A process that is killed
    between the two leaves an alias that the ledger does not explain, and every command says so.
    """
    entry = {
        "action": action,
        "model": version.name,
        "from": before,
        "to": version.number,
        "why": {**why, "trust_unsigned": "yes"} if trust_unsigned else dict(why),
        "evidence_sha256": version.evidence_sha256,
    }
    line = ledger.prepare(client, entry, trust_unsigned=trust_unsigned)
    client.set_registered_model_alias(version.name, CHAMPION, version.number)
    ledger.append(line)
    ledger.tag_head(client, version.name, line.head)
    logger.info("%s: champion %s -> %s", version.name, before, version.number)
