"""Registration: a trained model, with everything that speaks for it, as one MLflow version.

A version carries its own proof (certificate, evaluation, training facts, parameters),
so promotion needs nothing of the working directory. The same content is registered once.
"""

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipelines.artifacts import read_json, sha256_file
from pipelines.errors import UserError
from pipelines.git_state import GitState
from pipelines.model_card import ModelCard
from pipelines.params import PARAMS_FILE, load_params
from pipelines.tracking import EXPERIMENT, connect, flatten, local_state
from pipelines.version_content import content_to_log, enigma_package, hash_content
from pipelines.workspace import Workspace

LM = "enigma-lm"
FLOW = "enigma-flow"
MODELS = (LM, FLOW)
CODE = {
    LM: Path(__file__).with_name("lm_pyfunc.py"),
    FLOW: Path(__file__).with_name("flow_pyfunc.py"),
}
CANDIDATE = "candidate"
CHAMPION = "champion"
REQUIREMENTS = ("torch", "transformers", "safetensors", "pandas")
LM_SUMMARY = (
    "A causal, reversible language model for Chinese. It continues text; it knows no facts "
    "that can be relied on, and it is not aligned with anybody's instructions."
)
FLOW_SUMMARY = (
    "A normalizing flow: an exact density over the language model's final hidden states, "
    "with a little noise added. It scores how usual a text's states are, and draws states."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    """What a version is made of.

    Args:
        name: Registered name.
        models: Names of artifacts, each with its directory.
        proof: Names of proof files, each with where it is now.
        figures: Pictures for the card.
        mlflow_run_id: The run of the training; None if it never reached the store.
        facts: Tags of the version, beside those of every version.
        metrics: Figures for the run.
        card_tables: What the card shows.
        samples: Generated texts.
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


def register(name: str) -> str:
    """Register a model of the profile in use, and point the alias `candidate` at it.

    Args:
        name: `enigma-lm` or `enigma-flow`.

    Returns:
        The version; that of an earlier registration, if the content is the same.

    Raises:
        UserError: If a file is missing, or the files do not belong together.
    """
    workspace = Workspace(load_params().name)
    client = connect()
    material = flow_material(client, workspace) if name == FLOW else lm_material(workspace)
    content = hash_content(
        content_to_log(code=CODE[name], models=material.models, proof=material.proof)
    )
    with FileLock(local_state("registry.lock")):
        version = find_version(client, name, "content_sha256", content)
        if version is None:
            version = _log(client, material, content, workspace.profile)
            logger.info("registered %s version %s", name, version)
        else:
            logger.info("%s version %s has this very content already", name, version)
        client.set_registered_model_alias(name, CANDIDATE, version)
    return version


def find_version(client: Any, name: str, tag: str, value: str) -> str | None:
    """The newest version whose tag has a value; None if there is none."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{tag}` = '{value}'")
    return max((str(v.version) for v in found), key=int, default=None)


def lm_material(workspace: Workspace) -> Material:
    """Collect the language model of a profile and its proof.

    Raises:
        UserError: If a file is missing, or the weights are not those that were trained.
    """
    directory = workspace.language_model
    training = read_json(directory / "training.json")
    evaluation = read_json(workspace.report("evaluate") / "evaluation.json")
    weights = sha256_file(_existing(directory / "model.safetensors"))
    if weights != training["weights_sha256"]:
        raise UserError(
            f"{directory / 'model.safetensors'}: expected sha256 {training['weights_sha256']}, "
            f"came {weights}",
            "restore it with `dvc checkout --force`, or run `dvc repro train`",
        )
    if evaluation.get("weights_sha256") != weights:
        raise UserError(
            f"expected an evaluation of the weights {weights}, came one of "
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
        proof=_lm_proof(workspace),
        figures=_figures(workspace, "train", "evaluate"),
        mlflow_run_id=training["mlflow_run_id"],
        facts={"weights_sha256": weights, **figures, **causal},
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
    lm_weights = sha256_file(_existing(workspace.language_model / "model.safetensors"))
    lm_version = find_lm(client, training["lm_weights_sha256"])
    if lm_weights != training["lm_weights_sha256"] or lm_version is None:
        raise UserError(
            f"expected a flow over a registered {LM}, came one over the weights "
            f"{training['lm_weights_sha256']}, while {workspace.language_model} has {lm_weights}",
            f"run `dvc repro`, then `enigma register --model {LM}` first",
        )
    proof = _lm_proof(workspace) | {
        "flow_training.json": directory / "flow_training.json",
        "sample_flow.json": workspace.report("sample_flow") / "metrics.json",
    }
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
        proof=proof,
        figures=_figures(workspace, "sample_flow"),
        mlflow_run_id=training["mlflow_run_id"],
        facts={
            "weights_sha256": sha256_file(_existing(directory / "flow.safetensors")),
            "lm_version": lm_version,
            **figures,
        },
        metrics=_numbers(metrics),
        card_tables={
            "Samples and likelihood": metrics,
            "Training": {**read_json(workspace.report("train_flow") / "metrics.json"), **training},
        },
    )


def find_lm(client: Any, weights_sha256: str) -> str | None:
    """The version of `enigma-lm` with these weights; None if there is none."""
    return find_version(client, LM, "weights_sha256", weights_sha256)


def _lm_proof(workspace: Workspace) -> dict[str, Path]:
    proof = {
        "certificate.json": workspace.report("validate") / "certificate.json",
        "evaluation.json": workspace.report("evaluate") / "evaluation.json",
        "training.json": workspace.language_model / "training.json",
        "params.yaml": PARAMS_FILE,
    }
    lock = Path("dvc.lock")
    if lock.is_file():
        proof["dvc.lock"] = lock
    return {name: _existing(path) for name, path in proof.items()}


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


def _log(client: Any, material: Material, content: str, profile: str) -> str:
    """Log the model into the run of its training and register it."""
    import mlflow

    tags = _tags(material, content, profile)
    card = ModelCard(
        title=f"{material.name}, profile {profile}",
        summary=FLOW_SUMMARY if material.name == FLOW else LM_SUMMARY,
        tables={**material.card_tables, "Provenance": tags},
        samples=material.samples,
        figures=material.figures,
    )
    signature, example = _signature(material.name)
    with tempfile.TemporaryDirectory() as temporary, _run(client, material):
        proof = Path(temporary, "proof")
        proof.mkdir()
        for name, path in material.proof.items():
            shutil.copyfile(path, proof / name)
        card.write(Path(temporary, "card"))
        # Each directory keeps its name below the version's `artifacts/`.
        artifacts = {"proof": str(proof), "card": str(Path(temporary, "card"))}
        for name, directory in material.models.items():
            artifacts[name] = str(shutil.copytree(directory, Path(temporary, name)))
        mlflow.log_metrics({f"registered/{k}": v for k, v in material.metrics.items()})
        info = mlflow.pyfunc.log_model(
            name=material.name,
            python_model=str(CODE[material.name]),
            artifacts=artifacts,
            code_paths=[str(enigma_package())],
            signature=signature,
            input_example=example,
            # Given, so that MLflow does not run the model to find out.
            pip_requirements=[_pinned(name) for name in REQUIREMENTS],
            registered_model_name=material.name,
        )
    version = str(info.registered_model_version)
    client.update_model_version(material.name, version, description=card.markdown())
    # The content hash comes last: with it, the version counts as registered.
    for tag, value in sorted(tags.items(), key=lambda item: item[0] == "content_sha256"):
        client.set_model_version_tag(material.name, version, tag, value)
    return version


def _tags(material: Material, content: str, profile: str) -> dict[str, str]:
    training = read_json(material.proof["training.json"])
    tags = {
        **GitState.read().tags(),
        "profile": profile,
        "params_sha256": sha256_file(material.proof["params.yaml"]),
        "shards_root": training["shards_root"],
        "certificate_sha256": sha256_file(material.proof["certificate.json"]),
        "evaluation_sha256": sha256_file(material.proof["evaluation.json"]),
        "content_sha256": content,
        **material.facts,
    }
    if "dvc.lock" in material.proof:
        tags["dvc_lock_sha256"] = sha256_file(material.proof["dvc.lock"])
    return flatten(tags)


def _run(client: Any, material: Material) -> Any:
    """The run of the training, opened again; a new one if it is gone."""
    import mlflow
    from mlflow.exceptions import MlflowException

    run_id = material.mlflow_run_id
    if run_id is not None:
        try:
            if client.get_run(run_id).info.lifecycle_stage == "active":
                return mlflow.start_run(run_id=run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        logger.warning("run %s is not in this store; a new one is made", run_id)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return mlflow.start_run(
        experiment_id=experiment.experiment_id, run_name=f"register {material.name}"
    )


def _pinned(name: str) -> str:
    # "2.13.0+cpu" is in no public index.
    return f"{name}=={installed_version(name).split('+')[0]}"


def _signature(name: str) -> tuple[Any, Any]:
    """The signature of a model, and an input that fits it."""
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    seed = ParamSpec("seed", "long", 0)
    params = [
        ParamSpec("max_new_tokens", "long", 64),
        ParamSpec("temperature", "double", 0.8),
        ParamSpec("top_p", "double", 0.9),
        seed,
    ]
    output = ColSpec("double", "nll_nats_per_dim") if name == FLOW else ColSpec("string", "text")
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]),
        outputs=Schema([output]),
        params=ParamSchema([seed] if name == FLOW else params),
    )
    return signature, pd.DataFrame({"prompt": ["却说曹操"]})
