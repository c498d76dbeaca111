"""What a version is made of: files of the current profile, checked to belong together."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.base.artifacts import read_json, sha256_file, write_text
from pipelines.base.errors import UserError
from pipelines.base.workspace import Workspace
from pipelines.params import load_params
from pipelines.registry.content import ENVIRONMENT_FILE, LOCK_FILE, origins
from pipelines.registry.dvc_objects import hash_made, read_lock
from pipelines.registry.names import FLOW, LM, find_lm

STAGES = {LM: ("train", "evaluate"), FLOW: ("train", "evaluate", "train_flow", "sample_flow")}
"""The stages that a version's parameters and links must be about."""


@dataclass(frozen=True)
class Material:
    """What a version is made of.

    Args:
        name: Registered name.
        models: Directory of each artifact by name.
        proof: Present path of each proof file by name.
        figures: Pictures for the card.
        mlflow_run_id: The run of the training; None if the store was never reached.
        facts: Tags of this version, in addition to those of every version.
        metrics: Figures for the run.
        card_tables: What the card shows.
        samples: Generated texts.
        made: SHA-256 of every file of the outputs that it carries or rests on, by path.
    """

    name: str
    models: Mapping[str, Path]
    proof: Mapping[str, Path]
    figures: tuple[Path, ...]
    mlflow_run_id: str | None
    facts: Mapping[str, Any]
    metrics: Mapping[str, float]
    card_tables: Mapping[str, Mapping[str, Any]]
    samples: tuple[str, ...] = ()
    made: Mapping[str, str] = field(default_factory=dict)


def collect(client: Any, name: str, workspace: Workspace, made: Path) -> Material:
    """Collect a model of a profile and its proof.

    Args:
        client: MLflow's.
        name: `enigma-lm` or `enigma-flow`.
        workspace: Where the files are.
        made: A directory for the proof files that are written here; it must outlive the result.

    Raises:
        UserError: If a file is missing, is not as its stage made it, or the files do not belong
            together.
    """
    material = flow_material(client, workspace) if name == FLOW else lm_material(workspace)
    write_profile(made / "params.yaml")
    write_environment(made / ENVIRONMENT_FILE)
    proof = {**material.proof, **{path.name: path for path in made.iterdir()}}
    # A copy, as a run of DVC may replace the file at any moment.
    proof[LOCK_FILE] = Path(shutil.copyfile(_existing(Path(LOCK_FILE)), made / LOCK_FILE))
    check_stages(proof[LOCK_FILE], workspace.profile, STAGES[name])
    check_parameters(proof[LOCK_FILE], made / "params.yaml")
    return replace(material, proof=proof, made=hash_outputs(proof[LOCK_FILE], name, workspace))


def write_profile(path: Path) -> None:
    """Write the current profile alone: comments and other profiles do not describe the version."""
    params = load_params()
    profile = params.profile.model_dump(mode="json", by_alias=True)
    yaml = YAML()
    with path.open("w", encoding="utf-8") as stream:
        yaml.dump({"profile": params.name, "profiles": {params.name: profile}}, stream)


def check_stages(lock: Path, profile: str, stages: Sequence[str]) -> None:
    """Refuse a lock that does not say how the model was made: nothing could be checked by it.

    Args:
        lock: A `dvc.lock`, which holds one profile's run of each stage.
        profile: The profile that would be registered.
        stages: The stages that made the model and judged it.

    Raises:
        UserError: If the lock lacks one of them, or has it of another profile alone.
    """
    sections = _sections(lock)
    missing = [
        stage
        for stage in stages
        if not any(name.startswith(f"profiles.{profile}.") for name in sections.get(stage, ()))
    ]
    if missing:
        raise UserError(
            f"{LOCK_FILE}: expected the stages {', '.join(stages)} of the profile {profile}, "
            f"found no {', '.join(missing)}",
            "run `dvc repro`, which records every stage that it runs",
        )


def check_parameters(lock: Path, params: Path) -> None:
    """Refuse parameters other than those that made the outputs.

    Args:
        lock: A `dvc.lock`, which records the parameters of every stage.
        params: The profile that would be registered.

    Raises:
        UserError: At the first section that differs.
    """
    values = YAML(typ="safe").load(params.read_text(encoding="utf-8"))
    for stage, sections in _sections(lock).items():
        for name, made_with in sections.items():
            *place, section = name.split(".")
            if place != ["profiles", values["profile"]]:
                continue
            got = values["profiles"][values["profile"]].get(section)
            if got != made_with:
                raise UserError(
                    f"params.yaml: expected {name} as in stage {stage}, {made_with}, got {got}",
                    "run `dvc repro` with the present parameters, or restore the earlier ones",
                )


def hash_outputs(lock: Path, name: str, workspace: Workspace) -> dict[str, str]:
    """Hash the outputs that a version carries or rests on, each as its stage made it.

    Args:
        lock: A `dvc.lock`.
        name: `enigma-lm` or `enigma-flow`.
        workspace: Where the files are.

    Returns:
        The SHA-256 of every file by its path.

    Raises:
        UserError: If an output is not what the lock says, or no stage made what is carried.
    """
    carried = origins(name, workspace.profile).values()
    rests_on = [*carried, *(workspace.report(stage) for stage in ("validate", *STAGES[name]))]
    made = hash_made(
        out
        for stage in read_lock(lock).values()
        for out in stage.outs
        if any(_overlap(Path(out.path), place) for place in rests_on)
    )
    files = (file for place in carried for file in (place, *place.rglob("*")) if file.is_file())
    unmade = next((file for file in files if file.as_posix() not in made), None)
    if unmade is not None:
        raise UserError(
            f"{LOCK_FILE}: expected a stage that made {unmade}, found none",
            "run `dvc repro`, which records every stage that it runs",
        )
    return made


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _sections(path: Path) -> dict[str, dict[str, Any]]:
    """Read from a `dvc.lock` the parameters of every stage."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        stages = (YAML(typ="safe").load(text) or {}).get("stages") or {}
        return {
            stage: dict(entry.get("params", {}).get("params.yaml") or {})
            for stage, entry in stages.items()
        }
    except (YAMLError, AttributeError, TypeError, ValueError) as error:
        conflict = "<<<<<<<" in text
        raise UserError(
            f"{path.name}: expected stages as DVC writes them, got "
            f"{'the markers of a merge conflict' if conflict else str(error)}",
            "run `git checkout HEAD -- dvc.lock`, then `dvc repro`",
        ) from None


def write_environment(path: Path) -> None:
    """Write the interpreter and every installed package, pinned as pip does."""
    pins = {f"{found.name.lower()}=={found.version}" for found in distributions()}
    python = f"# python {sys.version.split()[0]} on {sys.platform}"
    write_text(path, "\n".join([python, *sorted(pins)]) + "\n")


def lm_material(workspace: Workspace) -> Material:
    """Collect the language model of a profile and its proof.

    Raises:
        UserError: If a file is missing, or the weights are not those that were trained.
    """
    directory = workspace.language_model
    training = read_json(directory / "training.json")
    evaluation = read_json(workspace.report("evaluate") / "evaluation.json")
    weights = sha256_file(_existing(directory / "model.safetensors"))
    if weights != training.get("weights_sha256"):
        raise UserError(
            f"{directory / 'model.safetensors'}: expected sha256 {training.get('weights_sha256')}, "
            f"got {weights}",
            f"restore it with `dvc checkout --force {directory}`, or run `dvc repro train`",
        )
    if evaluation.get("weights_sha256") != weights:
        raise UserError(
            f"expected an evaluation of the weights {weights}, got one of "
            f"{evaluation.get('weights_sha256')}",
            "run `dvc repro evaluate`",
        )
    figures = {
        "bits_per_character": evaluation["test"]["bits_per_character"],
        "perplexity": evaluation["test"]["perplexity"],
        "validation_perplexity": evaluation["validation"]["perplexity"],
        "round_trip_float32": evaluation["round_trip"]["float32"],
    }
    baselines = {
        f"{name}_bits_per_character": row["bits_per_character"]
        for name, row in evaluation["baselines"].items()
    }
    causal = {"is_causal": evaluation["causality"]["is_causal"]}
    return Material(
        name=LM,
        models={"model": directory},
        proof=_proof(LM, workspace),
        figures=_figures(workspace, "train", "evaluate"),
        mlflow_run_id=training["mlflow_run_id"],
        facts={
            "weights_sha256": weights,
            "evaluation_set_sha256": evaluation["evaluation_set"]["sha256"],
            **figures,
            **causal,
        },
        metrics=_numbers({**figures, **baselines}),
        card_tables={
            "Evaluation": {**figures, **baselines, **causal},
            "Training": {**read_json(workspace.report("train") / "metrics.json"), **training},
        },
        samples=tuple(evaluation["generation"]["samples"]),
    )


def flow_material(client: Any, workspace: Workspace) -> Material:
    """Collect the flow of a profile, the language model under it, and their proof.

    Raises:
        UserError: If a file is missing, or the language model is not registered.
    """
    directory = workspace.flow
    training = read_json(directory / "flow_training.json")
    metrics = read_json(workspace.report("sample_flow") / "metrics.json")
    weights = sha256_file(_existing(directory / "flow.safetensors"))
    if metrics.get("flow_weights_sha256") != weights:
        raise UserError(
            f"expected samples of the flow {weights}, got those of "
            f"{metrics.get('flow_weights_sha256')}",
            "run `dvc repro sample_flow`",
        )
    lm_weights = sha256_file(_existing(workspace.language_model / "model.safetensors"))
    lm_version = find_lm(client, lm_weights)
    fitted_to = training.get("lm_weights_sha256")
    if lm_weights != fitted_to or lm_version is None:
        raise UserError(
            f"expected a flow over a registered {LM}, got one over the weights {fitted_to}, while "
            f"{workspace.language_model} has {lm_weights}",
            f"run `dvc repro`, then `enigma register --model {LM}` first",
        )
    figures = {
        name: metrics[name]
        for name in (
            "test_nll_nats_per_dim",
            "gaussian_test_nll_nats_per_dim",
            "round_trip_error",
        )
    }
    return Material(
        name=FLOW,
        models={"model": directory, "language_model": workspace.language_model},
        proof=_proof(FLOW, workspace),
        figures=_figures(workspace, "sample_flow"),
        mlflow_run_id=training["mlflow_run_id"],
        facts={
            "weights_sha256": weights,
            "lm_version": lm_version,
            "evaluation_set_sha256": metrics["evaluation_set_sha256"],
            **figures,
        },
        metrics=_numbers(metrics),
        card_tables={
            "Samples and likelihood": metrics,
            "Training": {**read_json(workspace.report("train_flow") / "metrics.json"), **training},
        },
    )


def _proof(name: str, workspace: Workspace) -> dict[str, Path]:
    """Return the files of the proof that the stages made."""
    return {
        Path(place).name: _existing(path)
        for place, path in origins(name, workspace.profile).items()
        if place.startswith("proof/")
    }


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"expected {path}, found no such file", "run `dvc repro`, which makes it")
    return path


def _figures(workspace: Workspace, *stages: str) -> tuple[Path, ...]:
    return tuple(
        path
        for stage in stages
        for path in sorted((workspace.report(stage) / "figures").glob("*.png"))
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name.replace("-", "_"): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
