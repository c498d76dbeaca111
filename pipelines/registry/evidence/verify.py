"""Check a version by its own files: offline, without MLflow, Prefect or DVC.

enigma verify enigma-lm@champion
enigma verify enigma-lm-3.tar --key publisher.pem
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from pipelines.base.artifacts import read_manifest, verify_manifest
from pipelines.base.errors import UserError
from pipelines.base.workspace import Workspace
from pipelines.registry.evidence.envelopes import PUT_BACK, Json
from pipelines.registry.evidence.keys import Trust
from pipelines.registry.evidence.stored import Stored
from pipelines.registry.evidence.version import (
    evidence_gates,
    full_evidence_gates,
    read_statement,
)
from pipelines.registry.gates import Gate, Proof, flow_gates, lm_gates, recorded_gates
from pipelines.registry.names import FLOW

if TYPE_CHECKING:
    from enigma.model import EnigmaLM

# Of the evaluation set, when its shards are here.
SAMPLE = 16
# Losses are sums over a sequence; another machine rounds otherwise.
TOLERANCE = 1e-3


def verify(stored: Stored, trust: Trust) -> list[Gate]:
    """Check a version.

    Args:
        stored: The version, and what the store says of it.
        trust: The keys that count.

    Returns:
        Every gate that was checked: signatures, hashes, what the reports say of one another,
        the stages, causality on the weights, and losses if the shards are here. It ends early
        where what follows would read files that nobody vouches for.

    Raises:
        UserError: If a file of the proof is damaged.
    """
    version = stored.directory
    gates = evidence_gates(version, trust, name=stored.name, tags=stored.tags)
    gates += stored.gates
    if not all(gate.holds for gate in gates):
        return gates
    stated = read_statement(version, trust)["predicate"]
    proof = Proof.read(version, stored.name)
    own = flow_gates(proof) if stored.name == FLOW else lm_gates(proof)
    gates += [*full_evidence_gates(version, trust), *own, _stated_gate(stated, own)]
    gates += recorded_gates(proof, stated["tags"])
    from pipelines.language_model.published import load_network

    model = load_network(
        version / "artifacts" / ("language_model" if stored.name == FLOW else "model")
    )
    gates.append(_causality_gate(model, proof))
    if stored.name != FLOW and has_shards(proof):
        gates.append(_losses_gate(model, proof))
    return gates


def _stated_gate(stated: Json, found: list[Gate]) -> Gate:
    """Compare the gates that were signed with the same gates now."""
    signed = {gate["name"]: (gate["holds"], gate["figures"]) for gate in stated["gates"]}
    now = {gate.name: (gate.holds, gate.figures) for gate in found}
    differ = [name for name in signed if name in now and signed[name] != now[name]]
    return Gate(
        "signed_gates",
        not differ and len(signed) > 0,
        "; ".join(f"{name}: signed {signed[name][1]}, now {now[name][1]}" for name in differ)
        or f"{len(signed)} gates with the figures that were signed",
        "the signed figures",
        PUT_BACK,
    )


def _causality_gate(model: "EnigmaLM", proof: Proof) -> Gate:
    """Prove on the weights that no position sees a later one."""
    from enigma.causality import prove_causality

    length = min(proof.params.profile.evaluation.causality_length, model.max_len)
    holds = prove_causality(model, length).is_causal
    return Gate("causality_again", holds, f"is_causal is {holds} over {length} tokens", "True")


def has_shards(proof: Proof) -> bool:
    """Whether the working directory has the manifest of the shards on which it was judged."""
    try:
        root = read_manifest(Workspace(proof.params.name).shards)["root"]
    except (UserError, KeyError):
        return False
    return bool(root == proof.certificate.get("shards_root"))


def _losses_gate(model: "EnigmaLM", proof: Proof) -> Gate:
    """Compute the losses of a sample of the evaluation set again."""
    from pipelines.data.order import evenly_spaced
    from pipelines.data.shards import ShardReader
    from pipelines.language_model.scoring import batches, sequence_nll_nats

    params, shards = proof.params.profile.evaluation, Workspace(proof.params.name).shards
    try:
        verify_manifest(shards)
    except UserError as changed:
        return Gate("losses_again", False, changed.problem, "the shards as made", changed.fix)
    reader = ShardReader(shards, "test")
    chosen = evenly_spaced(len(reader), params.max_sequences)
    if proof.losses is None or len(proof.losses.loss_nats) != len(chosen):
        return Gate("losses_again", False, "no losses of these items", f"{len(chosen)} items")
    sample = evenly_spaced(len(chosen), SAMPLE)
    cut = batches(chosen[sample], params.batch_size)
    got = sequence_nll_nats(model, reader, cut)
    expected = proof.losses.loss_nats[sample]
    error = float(np.max(np.abs(got - expected) / np.maximum(np.abs(expected), 1.0)))
    return Gate(
        "losses_again",
        math.isfinite(error) and error <= TOLERANCE,
        f"relative error {error:.1e} over {len(sample)} items",
        f"at most {TOLERANCE:.0e}",
        PUT_BACK,
    )
