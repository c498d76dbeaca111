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
from pipelines.registry.content import RECORDED, content_of_version, hash_content
from pipelines.registry.evidence.envelopes import PUT_BACK
from pipelines.registry.evidence.figures import bits_per_character, nested, number
from pipelines.registry.names import CODE, FLOW, find_lm
from pipelines.tracking.git import is_commit

RETRAIN = "run `dvc repro` and `enigma register` again"
CHANGE = (
    "read reports/<profile>/evaluate/evaluation.json and change `model` or `train` in params.yaml "
    "(unchanged they give the same model), then run `dvc repro` and `enigma register` again"
)
EVALUATE = (
    "run `dvc repro --force --single-item evaluate`, which computes them, then `dvc repro` and "
    "`enigma register` again"
)
SAMPLE_MEASURES = {
    "two_sample_auc": "two-sample AUC",
    "energy_distance": "energy distance",
    "true_jensen_shannon_bits": "bits to true next tokens",
}
"""Measures of samples in `sample_flow.json`, each lower for better ones, and their labels."""


@dataclass(frozen=True)
class Gate:
    """One condition and what was found.

    Args:
        name: Its name in refusals and in the ledger.
        holds: Whether the version passes.
        figures: What was found.
        bound: What was expected.
        fix: What the user can do after a refusal.
    """

    name: str
    holds: bool
    figures: str
    bound: str
    fix: str = RETRAIN

    @property
    def comparison(self) -> str:
        """What was found and expected, in one line."""
        return f"{self.figures}; expected: {self.bound}"


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
            nested(self.flow, "sample_flow", "evaluation_set_sha256")
            if self.flow
            else nested(self.evaluation, "evaluation_set", "sha256")
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
    tokens, characters = (number(evaluation, "test", name) for name in ("tokens", "characters"))
    bounds = {
        name: number(evaluation, "bounds", name)
        for name in ("min_perplexity", "max_round_trip_error")
    }
    perplexity = {
        split: number(evaluation, split, "perplexity") for split in ("validation", "test")
    }
    directions = ("float32", "float32_reversed")
    round_trips = [number(evaluation, "round_trip", direction) for direction in directions]
    lowest = max(bounds["min_perplexity"], band.min_perplexity)
    causal = nested(evaluation, "causality", "is_causal")
    alarms = nested(evaluation, "alarms")
    return [
        *data_gates(proof),
        Gate("causality", causal is True, f"is_causal is {causal}", "True", CHANGE),
        Gate(
            "round_trip",
            all(error <= bounds["max_round_trip_error"] for error in round_trips),
            "relative errors " + " and ".join(f"{error:.2e}" for error in round_trips),
            f"at most {bounds['max_round_trip_error']:.2e}",
            CHANGE,
        ),
        _baseline_gate(evaluation, band.baseline),
        Gate(
            "perplexity",
            all(lowest < value < band.max_perplexity for value in perplexity.values()),
            ", ".join(f"{split} {value:.4g}" for split, value in perplexity.items()),
            f"between {lowest:g} and {band.max_perplexity:g}",
            "look for a leak in the data or in the model; promote.min_perplexity and "
            "promote.max_perplexity in params.yaml are the bounds (then `enigma register` again)",
        ),
        _losses_gate(proof, number(evaluation, "test", "loss_nats"), tokens / characters),
        Gate("alarms", alarms == [], _named(alarms), "none", CHANGE),
    ]


def _baseline_gate(evaluation: Mapping[str, Any], baseline: str) -> Gate:
    """Compare bits per character, each of which must follow from the stated nats and counts."""
    models = {"test": ("test",), baseline: ("baselines", baseline)}
    ours, theirs = (number(evaluation, *model, "bits_per_character") for model in models.values())
    wrong = [
        f"{name} has {built:.4f} by its nats and counts"
        for (name, model), bits in zip(models.items(), (ours, theirs), strict=True)
        if not math.isclose(built := bits_per_character(evaluation, *model), bits, rel_tol=1e-9)
    ]
    return Gate(
        "baseline",
        not wrong and ours < theirs,
        "; ".join([f"{ours:.4f} bits per character", *wrong]),
        f"below {baseline} {theirs:.4f}",
        EVALUATE if wrong else CHANGE,
    )


def _named(alarms: Any) -> str:
    """The names of an evaluation's alarms; what is there instead, if it is no list of alarms."""
    if alarms == []:
        return "none"
    names = [nested(alarm, "name") for alarm in alarms] if isinstance(alarms, list) else [None]
    return ", ".join(str(name) for name in names) if None not in names else str(alarms)


def flow_gates(proof: Proof) -> list[Gate]:
    """Return the gates of a flow: its data, its round trip, its gain, its samples."""
    sampled, training = proof.flow["sample_flow"], proof.flow["flow_training"]
    error = number(sampled, "round_trip_error")
    bound = number(sampled, "max_round_trip_error")
    ours = number(sampled, "test_nll_nats_per_dim")
    theirs = number(sampled, "gaussian_test_nll_nats_per_dim")
    certified = proof.certificate.get("shards_root")
    return [
        *data_gates(proof),
        _equal("flow_shards", training.get("shards_root"), certified, "those of the certificate"),
        _equal(
            "flow_states", training.get("lm_weights_sha256"), proof.weights_sha256,
            "the version's language model",
        ),
        Gate(
            "flow_round_trip", error <= bound, f"relative error {error:.2e}", f"at most {bound:.2e}"
        ),
        Gate(
            "gaussian",
            -math.inf < ours < theirs,
            f"negative log-likelihood {ours:.4f} nats per dimension",
            f"below the Gaussian's {theirs:.4f}",
            "fit the flow to more states (train_flow.train_states) or longer (train_flow.steps in "
            "params.yaml), then run `dvc repro` and `enigma register` again",
        ),
        _samples_gate(sampled),
        _equal(
            "flow_weights", sampled.get("flow_weights_sha256"), proof.flow_weights_sha256,
            "the version's weights",
        ),
        _losses_gate(proof, ours - theirs, 1.0),
    ]  # fmt: skip


def _samples_gate(sampled: Mapping[str, Any]) -> Gate:
    """Check that samples are nearer to real states than those of the Gaussian, by every measure."""
    ours, theirs = (
        {name: number(sampled, prefix + name) for name in SAMPLE_MEASURES}
        for prefix in ("", "gaussian_")
    )
    for found in (ours, theirs):
        # A classifier that is always wrong has told them apart.
        found["two_sample_auc"] = max(found["two_sample_auc"], 1 - found["two_sample_auc"])
    figures, bound = (
        ", ".join(f"{label} {found[name]:.4f}" for name, label in SAMPLE_MEASURES.items())
        for found in (ours, theirs)
    )
    return Gate(
        "samples",
        all(-math.inf < ours[name] < theirs[name] for name in SAMPLE_MEASURES),
        figures,
        f"each below the Gaussian's {bound}",
        "fit the flow to more states (train_flow.train_states) or from more clusters "
        "(train_flow.mixture in params.yaml), then run `dvc repro` and `enigma register` again",
    )


def language_model_gate(client: Any, proof: Proof) -> Gate:
    """Return the gate that asks for the language model under a flow as a version of its own."""
    version = find_lm(client, proof.weights_sha256)
    return Gate(
        "language_model",
        version is not None,
        f"version {version}",
        f"a version with the weights {proof.weights_sha256[:12]}",
        "register the language model under the flow first",
    )


def commit_gate(tags: Mapping[str, str]) -> Gate:
    """Return the gate that asks which code made a version."""
    commit = tags.get("git_commit", "unknown")
    return Gate(
        "commit",
        is_commit(commit),
        f"commit {commit}",
        "a commit of git",
        "run `git rev-parse HEAD` in the repository and do what it says, then `enigma register`",
    )


def recorded_gates(proof: Proof, tags: Mapping[str, str]) -> list[Gate]:
    """Return the gates that compare what is stored with what was registered."""
    # A version of an earlier release may have had no lock: it is not counted as compared.
    files = {
        file: (tags.get(tag), proof.sha256.get(file))
        for file, tag in RECORDED.items()
        if tag in tags or file in proof.sha256
    }
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
            f"stored as {proof.content_sha256[:12]}",
            f"registered as {str(registered)[:12]}",
            PUT_BACK,
        ),
        Gate(
            "recorded",
            not changed,
            "; ".join(changed) or f"{len(files)} files as registered",
            f"as registered: {', '.join(files)}",
            PUT_BACK,
        ),
    ]


def _losses_gate(proof: Proof, mean_nats: float, scale: float) -> Gate:
    """Check that the losses of the items add up to the mean that the report states."""
    stated = mean_nats * scale
    bound = f"the report's {stated:.6f} nats per unit"
    if proof.losses is None:
        return Gate("losses", False, f"no {LOSSES_FILE} in the proof", bound)
    got = float(proof.losses.loss_nats.sum() / proof.losses.units.sum())
    holds = math.isclose(got, stated, rel_tol=1e-4, abs_tol=1e-6)
    return Gate("losses", holds, f"{got:.6f} over {len(proof.losses.units)} items", bound)


def data_gates(proof: Proof) -> list[Gate]:
    """Return the gates on the data: no overlap, and every file about the same data and weights."""
    overlap = proof.certificate.get("overlap") or {}
    pairs = ["/".join(pair) for pair in itertools.combinations(SPLITS, 2)]
    counts = {
        f"{pair} {method}": count
        for pair in pairs
        for method, count in (overlap.get(pair) or {"of any kind": None}).items()
    }
    shared = [f"{name} {count}" for name, count in counts.items() if count != 0]
    roots = {
        "certificate": nested(proof.certificate, "shards_root"),
        "training": nested(proof.training, "shards_root"),
        "evaluation": nested(proof.evaluation, "evaluation_set", "shards_root"),
    }
    passed = proof.certificate.get("passed")
    return [
        Gate("certificate", passed is True, f"passed is {passed}", "True"),
        Gate(
            "overlap",
            not shared,
            ", ".join(shared) or f"0 in each of {len(counts)} counts",
            "nothing shared between splits",
        ),
        Gate(
            "shards",
            None not in roots.values() and len(set(roots.values())) == 1,
            ", ".join(f"{name} {str(root)[:12]}" for name, root in roots.items()),
            "one shards_root",
        ),
        _equal(
            "certificate_sha256", proof.training.get("certificate_sha256"),
            proof.sha256["certificate.json"], "the version's certificate",
        ),
        _equal(
            "weights", proof.training.get("weights_sha256"), proof.weights_sha256,
            "the version's weights",
        ),
        _equal(
            "evaluated_weights", proof.evaluation.get("weights_sha256"), proof.weights_sha256,
            "the version's weights",
        ),
    ]  # fmt: skip


def _equal(name: str, stated: Any, got: Any, what: str) -> Gate:
    """Compare what a report is about with what the version has."""
    return Gate(name, stated == got, f"made with {str(stated)[:12]}", f"{what}, {str(got)[:12]}")
