"""Promotion: the alias `champion` moves only to a version whose own proof holds.

Everything is read from the version's files, nothing from the working directory. A
refusal is a `GateError` that names the gate and its figures; the champion stays.
"""

import itertools
import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipelines import ledger
from pipelines.artifacts import read_json, sha256_file
from pipelines.errors import GateError, UserError
from pipelines.params import Params, load_params
from pipelines.registry import CANDIDATE, CHAMPION, CODE, FLOW, find_lm
from pipelines.tracking import connect, local_state
from pipelines.version_content import content_of_version, hash_content
from pipelines.workspace import SPLITS

RETRAIN = "run `dvc repro` and `enigma register` again"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gate:
    """One condition and what was found.

    Args:
        name: As the refusal and the ledger spell it.
        holds: Whether the version passes.
        figures: What was compared.
        fix: What to do about a refusal.
    """

    name: str
    holds: bool
    figures: str
    fix: str = RETRAIN


@dataclass(frozen=True)
class Proof:
    """The proof files of a version, and the hashes of what they speak of.

    Args:
        certificate: Of the data.
        training: Of the language model.
        evaluation: Of the language model.
        params: With which all of it was made.
        sha256: Of every proof file.
        weights_sha256: Of the language model's weights in this version.
        content_sha256: Of all files of this version.
        flow: `flow_training.json` and `sample_flow.json` of a flow; else empty.
    """

    certificate: Mapping[str, Any]
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    params: Params
    sha256: Mapping[str, str]
    weights_sha256: str
    content_sha256: str
    flow: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, version: Path, name: str) -> "Proof":
        """Read a downloaded version.

        Raises:
            UserError: If a proof file is missing or damaged.
        """
        artifacts = version / "artifacts"
        directory = artifacts / "proof"
        language_model = artifacts / ("language_model" if name == FLOW else "model")
        flow = ("flow_training", "sample_flow") if name == FLOW else ()
        return cls(
            certificate=read_json(directory / "certificate.json"),
            training=read_json(directory / "training.json"),
            evaluation=read_json(directory / "evaluation.json"),
            params=load_params(directory / "params.yaml"),
            sha256={path.name: sha256_file(path) for path in sorted(directory.iterdir())},
            weights_sha256=sha256_file(language_model / "model.safetensors"),
            content_sha256=hash_content(content_of_version(version, code_name=CODE[name].name)),
            flow={key: read_json(directory / f"{key}.json") for key in flow},
        )


def promote(name: str, version: str | None = None, *, dry_run: bool = False) -> bool:
    """Check every gate, then make a version the champion.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        version: Which one; None for the alias `candidate`.
        dry_run: Check only.

    Returns:
        Whether the alias moved.

    Raises:
        UserError: If there is no such version.
        GateError: For the first gate that refuses.
    """
    import mlflow

    client = connect()
    chosen = version or _aliased(client, name, CANDIDATE)
    if chosen is None or not _exists(client, name, chosen):
        raise UserError(
            f"expected {name} version {chosen or '(candidate)'} in the registry, found none",
            f"run `enigma register --model {name}`; `enigma where` lists what there is",
        )
    with tempfile.TemporaryDirectory() as temporary:
        downloaded = mlflow.artifacts.download_artifacts(
            f"models:/{name}/{chosen}", dst_path=temporary
        )
        proof = Proof.read(Path(downloaded), name)
    registered = client.get_model_version(name, chosen).tags.get("content_sha256")
    gates = [
        *(flow_gates(client, proof) if name == FLOW else lm_gates(proof)),
        Gate(
            "content",
            proof.content_sha256 == registered,
            f"registered as {registered}, stored as {proof.content_sha256}",
            "put the stored files back, or delete the version and run `enigma register` again",
        ),
    ]
    for gate in gates:
        logger.info("%s %s: gate %s: %s", name, chosen, gate.name, gate.figures)
        if not gate.holds:
            raise GateError(gate.name, f"{name} version {chosen}: {gate.figures}", gate.fix)
    if dry_run:
        logger.info("dry run: every gate holds; the champion stays")
        return False
    return _move(client, name, chosen, gates, proof)


def lm_gates(proof: Proof) -> list[Gate]:
    """The gates of a language model; what is missing or not a number does not pass."""
    evaluation = proof.evaluation
    baseline = proof.params.profile.promote.baseline
    ours = _number(evaluation, "test", "bits_per_character")
    theirs = _number(evaluation, "baselines", baseline, "bits_per_character")
    bounds = {
        name: _number(evaluation, "bounds", name)
        for name in ("min_perplexity", "max_round_trip_error")
    }
    perplexity = {
        split: _number(evaluation, split, "perplexity") for split in ("validation", "test")
    }
    round_trip = _number(evaluation, "round_trip", "float32")
    causal = _get(evaluation, "causality", "is_causal")
    alarms = _get(evaluation, "alarms")
    return [
        *_data_gates(proof),
        Gate("causality", causal is True, f"is_causal is {causal}"),
        Gate(
            "round_trip",
            round_trip <= bounds["max_round_trip_error"],
            f"relative error {round_trip:.2e}, bound {bounds['max_round_trip_error']:.2e}",
        ),
        Gate("baseline", ours < theirs, f"{ours:.4f} bits a character, {baseline} {theirs:.4f}"),
        Gate(
            "perplexity",
            all(bounds["min_perplexity"] < value < math.inf for value in perplexity.values()),
            f"{perplexity}, expected above {bounds['min_perplexity']}",
            "look for a leak in the data or in the model",
        ),
        Gate("alarms", alarms == [], f"alarms of the evaluation: {alarms}"),
    ]


def flow_gates(client: Any, proof: Proof) -> list[Gate]:
    """The gates of a flow: its data, its language model, its round trip, its gain."""
    sampled, training = proof.flow["sample_flow"], proof.flow["flow_training"]
    error = _number(sampled, "round_trip_error")
    bound = _number(sampled, "max_round_trip_error")
    ours = _number(sampled, "test_nll_nats_per_dim")
    theirs = _number(sampled, "gaussian_test_nll_nats_per_dim")
    shards = training.get("shards_root")
    weights = str(training.get("lm_weights_sha256"))
    lm_version = find_lm(client, weights) if weights == proof.weights_sha256 else None
    return [
        *_data_gates(proof),
        Gate(
            "flow_shards",
            shards == proof.certificate.get("shards_root"),
            f"flow trained on {shards}, certificate for {proof.certificate.get('shards_root')}",
        ),
        Gate(
            "language_model",
            lm_version is not None,
            f"flow over the weights {weights}, the version has {proof.weights_sha256}, "
            f"registered as version {lm_version}",
            "register the language model under the flow first",
        ),
        Gate("flow_round_trip", error <= bound, f"relative error {error:.2e}, bound {bound:.2e}"),
        Gate(
            "gaussian",
            -math.inf < ours < theirs,
            f"negative log-likelihood {ours:.4f} nats a dimension, Gaussian {theirs:.4f}",
            "train the flow longer, or on more states",
        ),
    ]


def _data_gates(proof: Proof) -> list[Gate]:
    overlap = proof.certificate.get("overlap") or {}
    pairs = ["/".join(pair) for pair in itertools.combinations(SPLITS, 2)]
    counts = [
        count for pair in pairs for count in (overlap.get(pair) or {"missing": None}).values()
    ]
    roots = {
        "certificate": _get(proof.certificate, "shards_root"),
        "training": _get(proof.training, "shards_root"),
        "evaluation": _get(proof.evaluation, "evaluation_set", "shards_root"),
    }
    certified = proof.training.get("certificate_sha256")
    came = proof.sha256["certificate.json"]
    trained = proof.training.get("weights_sha256")
    evaluated = proof.evaluation.get("weights_sha256")
    passed = proof.certificate.get("passed")
    return [
        Gate("certificate", passed is True, f"passed is {passed}"),
        Gate("overlap", all(count == 0 for count in counts), f"shared between splits: {overlap}"),
        Gate("shards", None not in roots.values() and len(set(roots.values())) == 1, f"{roots}"),
        Gate(
            "certificate_sha256",
            came == certified,
            f"trained with the certificate {certified}, the version has {came}",
        ),
        Gate(
            "weights",
            proof.weights_sha256 == trained,
            f"trained weights {trained}, the version has {proof.weights_sha256}",
        ),
        Gate(
            "evaluated_weights",
            proof.weights_sha256 == evaluated,
            f"evaluated weights {evaluated}, the version has {proof.weights_sha256}",
        ),
    ]


def _move(client: Any, name: str, version: str, gates: list[Gate], proof: Proof) -> bool:
    """Move the alias and write the ledger; one at a time, as MLflow's own move is no swap."""
    with FileLock(local_state("promotion.lock")):
        before = _aliased(client, name, CHAMPION)
        recorded = [entry["to"] for entry in ledger.read() if entry["model"] == name]
        # A process killed between alias and ledger leaves a line to be added.
        if before == version and recorded[-1:] == [version]:
            logger.info("%s version %s is the champion already", name, version)
            return False
        client.set_registered_model_alias(name, CHAMPION, version)
        ledger.append(
            {
                "model": name,
                "from": recorded[-1] if before == version and recorded else before,
                "to": version,
                "why": {gate.name: gate.figures for gate in gates},
                "evidence_sha256": dict(proof.sha256),
            }
        )
    logger.info("%s: champion %s -> %s", name, before, version)
    return True


def _aliased(client: Any, name: str, alias: str) -> str | None:
    """The version an alias points at; None without the model or the alias."""
    for model in client.search_registered_models(f"name = '{name}'"):
        version = model.aliases.get(alias)
        return None if version is None else str(version)
    return None


def _exists(client: Any, name: str, version: str) -> bool:
    return any(str(v.version) == version for v in client.search_model_versions(f"name = '{name}'"))


def _get(values: Mapping[str, Any], *path: str) -> Any:
    """A nested value; None where a name is missing."""
    found: Any = values
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _number(values: Mapping[str, Any], *path: str) -> float:
    """A nested number; NaN, which passes no comparison, for anything else."""
    found = _get(values, *path)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return math.nan
    return float(found)
