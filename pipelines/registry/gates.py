"""The gates of a promotion: what a version's own proof must show before it may be champion.

They read the version's files and nothing from the working directory. A value that is missing
or not a number does not pass.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.base.artifacts import read_json, sha256_file
from pipelines.base.errors import UserError
from pipelines.base.workspace import SPLITS
from pipelines.language_model.losses import LOSSES_FILE, Losses
from pipelines.params import Params, load_params
from pipelines.registry.content import content_of_version, hash_content
from pipelines.registry.names import CODE, FLOW, find_lm
from pipelines.registry.register import RECORDED

RETRAIN = "run `dvc repro` and `enigma register` again"
PUT_BACK = "restore the stored files, or delete the version and run `enigma register` again"


@dataclass(frozen=True)
class Gate:
    """One condition and what was found.

    Args:
        name: Its name in refusals and in the ledger.
        holds: Whether the version passes.
        figures: What was compared.
        fix: What the user can do after a refusal.
    """

    name: str
    holds: bool
    figures: str
    fix: str = RETRAIN


@dataclass(frozen=True)
class Proof:
    """The proof files of a version, and the hashes of what they are about.

    Args:
        certificate: Of the data.
        training: Of the language model.
        evaluation: Of the language model.
        params_file: The parameters that made all of it; read only on demand, as those of an
            old version may not match the schema of today.
        sha256: Of every proof file, by name.
        weights_sha256: Of the language model's weights in this version.
        flow_weights_sha256: Of a flow's weights; else None.
        content_sha256: Of all files that decide how this version behaves.
        losses: On each item of the evaluation set; None in a version older than this file.
        flow: `flow_training.json` and `sample_flow.json` of a flow; else empty.
    """

    certificate: Mapping[str, Any]
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    params_file: Path
    sha256: Mapping[str, str]
    weights_sha256: str
    flow_weights_sha256: str | None
    content_sha256: str
    losses: Losses | None
    flow: Mapping[str, Mapping[str, Any]]

    @property
    def params(self) -> Params:
        """The parameters that made the version.

        Raises:
            UserError: If they do not match the schema of today.
        """
        return load_params(self.params_file)

    @property
    def evaluation_set(self) -> str:
        """The hash that names the items on which the version was judged."""
        found = (
            _get(self.flow, "sample_flow", "evaluation_set_sha256")
            if self.flow
            else _get(self.evaluation, "evaluation_set", "sha256")
        )
        return str(found)

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
            params_file=_existing(directory / "params.yaml"),
            sha256={path.name: sha256_file(path) for path in sorted(directory.iterdir())},
            weights_sha256=sha256_file(language_model / "model.safetensors"),
            flow_weights_sha256=(
                sha256_file(artifacts / "model" / "flow.safetensors") if name == FLOW else None
            ),
            content_sha256=hash_content(content_of_version(version, code_name=CODE[name].name)),
            losses=(
                Losses.read(directory / LOSSES_FILE) if (directory / LOSSES_FILE).exists() else None
            ),
            flow={key: read_json(directory / f"{key}.json") for key in flow},
        )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"expected {path.name} in the proof, found no such file", PUT_BACK)
    return path


def lm_gates(proof: Proof) -> list[Gate]:
    """Return the gates of a language model."""
    evaluation = proof.evaluation
    band = proof.params.profile.promote
    baseline = band.baseline
    tokens, characters = (_number(evaluation, "test", name) for name in ("tokens", "characters"))
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
    lowest = max(bounds["min_perplexity"], band.min_perplexity)
    causal = _get(evaluation, "causality", "is_causal")
    alarms = _get(evaluation, "alarms")
    return [
        *data_gates(proof),
        Gate("causality", causal is True, f"is_causal is {causal}"),
        Gate(
            "round_trip",
            round_trip <= bounds["max_round_trip_error"],
            f"relative error {round_trip:.2e}, bound {bounds['max_round_trip_error']:.2e}",
        ),
        Gate("baseline", ours < theirs, f"{ours:.4f} bits per character, {baseline} {theirs:.4f}"),
        Gate(
            "perplexity",
            all(lowest < value < band.max_perplexity for value in perplexity.values()),
            f"{perplexity}, expected between {lowest:g} and {band.max_perplexity:g}",
            "look for a leak in the data or in the model; promote.min_perplexity and "
            "promote.max_perplexity in params.yaml are the bounds",
        ),
        _losses_gate(proof, _number(evaluation, "test", "loss_nats"), tokens / characters),
        Gate("alarms", alarms == [], f"alarms of the evaluation: {alarms}"),
    ]


def flow_gates(client: Any, proof: Proof) -> list[Gate]:
    """Return the gates of a flow: its data, its language model, its round trip, its gain."""
    sampled, training = proof.flow["sample_flow"], proof.flow["flow_training"]
    error = _number(sampled, "round_trip_error")
    bound = _number(sampled, "max_round_trip_error")
    ours = _number(sampled, "test_nll_nats_per_dim")
    theirs = _number(sampled, "gaussian_test_nll_nats_per_dim")
    evaluated = sampled.get("flow_weights_sha256")
    shards = training.get("shards_root")
    weights = str(training.get("lm_weights_sha256"))
    lm_version = find_lm(client, weights) if weights == proof.weights_sha256 else None
    return [
        *data_gates(proof),
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
            f"negative log-likelihood {ours:.4f} nats per dimension, Gaussian {theirs:.4f}",
            "train the flow longer, or on more states",
        ),
        Gate(
            "flow_weights",
            evaluated == proof.flow_weights_sha256,
            f"sampled weights {evaluated}, the version has {proof.flow_weights_sha256}",
        ),
        _losses_gate(proof, ours - theirs, 1.0),
    ]


def recorded_gates(proof: Proof, tags: Mapping[str, str]) -> list[Gate]:
    """Return the gates that compare what is stored with what was registered."""
    files = {file: (tags.get(tag), proof.sha256.get(file)) for file, tag in RECORDED.items()}
    changed = [
        f"{file}: registered as {expected}, stored as {got}"
        for file, (expected, got) in files.items()
        if expected != got
    ]
    registered = tags.get("content_sha256")
    return [
        Gate(
            "content",
            proof.content_sha256 == registered,
            f"registered as {registered}, stored as {proof.content_sha256}",
            PUT_BACK,
        ),
        Gate(
            "recorded",
            not changed,
            "; ".join(changed) or f"as registered: {', '.join(files)}",
            PUT_BACK,
        ),
    ]


def _losses_gate(proof: Proof, mean_nats: float, scale: float) -> Gate:
    """Check that the losses of the items add up to the mean that the report states."""
    if proof.losses is None:
        return Gate("losses", False, f"expected {LOSSES_FILE} in the proof, got none")
    got = float(proof.losses.loss_nats.sum() / proof.losses.units.sum())
    stated = mean_nats * scale
    return Gate(
        "losses",
        math.isclose(got, stated, rel_tol=1e-4, abs_tol=1e-6),
        f"{got:.6f} nats per unit over the items, the report states {stated:.6f}",
    )


def data_gates(proof: Proof) -> list[Gate]:
    """Return the gates on the data: no overlap, and every file about the same data and weights."""
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
    got = proof.sha256["certificate.json"]
    trained = proof.training.get("weights_sha256")
    evaluated = proof.evaluation.get("weights_sha256")
    passed = proof.certificate.get("passed")
    return [
        Gate("certificate", passed is True, f"passed is {passed}"),
        Gate("overlap", all(count == 0 for count in counts), f"shared between splits: {overlap}"),
        Gate("shards", None not in roots.values() and len(set(roots.values())) == 1, f"{roots}"),
        Gate(
            "certificate_sha256",
            got == certified,
            f"trained with the certificate {certified}, the version has {got}",
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


def _get(values: Mapping[str, Any], *path: str) -> Any:
    """Return a nested value; None where a name is missing."""
    found: Any = values
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _number(values: Mapping[str, Any], *path: str) -> float:
    """Return a nested number; NaN, which passes no comparison, for anything else."""
    found = _get(values, *path)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return math.nan
    return float(found)
