"""Registration: a trained model and its proof as one MLflow version.

A version carries its own proof (certificate, evaluation, training facts, parameters), so
promotion needs nothing from the working directory. The same content is registered once.
"""

import io
import logging
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner

from enigma.generation import Sampling
from pipelines.base.artifacts import (
    MANIFEST_NAME,
    read_json,
    read_manifest,
    sha256_file,
    write_text,
)
from pipelines.base.errors import GateError, UserError
from pipelines.base.workspace import Workspace
from pipelines.language_model.continuations import continuations_page
from pipelines.params import load_params
from pipelines.registry.content import (
    COMPILED,
    ENVIRONMENT_FILE,
    LOCK_FILE,
    RECORDED,
    content_to_log,
    enigma_package,
    hash_content,
    no_compiled_code,
    write_guards,
)
from pipelines.registry.dvc_objects import read_lock
from pipelines.registry.evidence.keys import own_key, trust
from pipelines.registry.evidence.links import stage_links
from pipelines.registry.evidence.version import (
    FOLDER,
    evidence_gates,
    full_evidence_gates,
    sign_version,
)
from pipelines.registry.gates import Proof, commit_gate, flow_gates, lm_gates
from pipelines.registry.material import Material, collect
from pipelines.registry.model_card import ModelCard
from pipelines.registry.names import CANDIDATE, CHAMPION, CODE, FLOW, LM, aliased, find_version
from pipelines.registry.standards import write_standards
from pipelines.registry.standards.facts import Facts, read_packages
from pipelines.registry.standards.hub_card import hub_metadata
from pipelines.registry.versions import downloaded
from pipelines.tracking.git import GitState, git_refusal
from pipelines.tracking.run_log import flatten
from pipelines.tracking.store import EXPERIMENT, connect, registry_lock

REQUIREMENTS = ("torch", "transformers", "safetensors", "pandas")
LM_SUMMARY = (
    "A causal, reversible language model for Chinese. It continues text. It is no reliable "
    "source of facts, and it is not trained to follow instructions."
)
FLOW_SUMMARY = (
    "A normalizing flow: an exact density over the final hidden states of the language model, "
    "with a little noise added. It scores how typical the states of a text are, and samples "
    "states."
)

logger = logging.getLogger(__name__)


def register(name: str) -> str:
    """Register a model of the current profile, and point the alias `candidate` at it.

    Args:
        name: `enigma-lm` or `enigma-flow`.

    Returns:
        The version; an earlier one if its content is the same, and it is stored as it was signed.

    Raises:
        UserError: If a file is missing, is not as its stage made it, or the files do not belong
            together.
        GateError: `commit`, if git does not name the code that made it.
    """
    workspace = Workspace(load_params().name)
    client = connect()
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        material = collect(client, name, workspace, made)
        if not GitState.read().known:
            problem, fix = git_refusal()
            raise GateError("commit", f"expected the commit of {Path.cwd()}, got: {problem}", fix)
        content = hash_content(
            content_to_log(code=CODE[name], models=material.models, proof=material.proof)
        )
        key = own_key()
        with registry_lock(f"register {name}"):
            version = find_version(client, name, "content_sha256", content)
            if version is None or not _is_whole(client, material, version):
                version = _log(client, material, content, workspace.profile, key)
                logger.info("registered %s version %s", name, version)
            else:
                logger.info("%s version %s has the same content already", name, version)
            client.set_registered_model_alias(name, CANDIDATE, version)
    return version


def _log(client: Any, material: Material, content: str, profile: str, key: CryptoSigner) -> str:
    """Log the model into the run of its training, sign what is stored, and register it."""
    import mlflow

    tags = _tags(material, content, profile, key.public_key.keyid)
    summary = FLOW_SUMMARY if material.name == FLOW else LM_SUMMARY
    facts = _facts(material, tags, summary)
    card = ModelCard(
        title=f"{material.name}, profile {profile}",
        summary=summary,
        tables=_card_tables(material, tags),
        samples=material.samples,
        figures=material.figures,
        metadata=hub_metadata(facts),
    )
    signature, example = _signature(material.name)
    with tempfile.TemporaryDirectory() as temporary, _run(client, material):
        proof = Path(temporary, "proof")
        proof.mkdir()
        for name, path in material.proof.items():
            shutil.copyfile(path, proof / name)
        card.write(Path(temporary, "card"))
        if material.name == LM:
            page = _continuations(client, material)
            write_text(Path(temporary, "card", "continuations.html"), page)
        write_standards(facts, Path(temporary, "card"))
        # Each directory keeps its name below the version's `artifacts/`.
        artifacts = {"proof": str(proof), "card": str(Path(temporary, "card"))}
        for name, directory in material.models.items():
            artifacts[name] = str(shutil.copytree(directory, Path(temporary, name)))
        mlflow.log_metrics({f"registered/{k}": v for k, v in material.metrics.items()})
        with no_compiled_code():  # MLflow runs what it is about to store
            info = mlflow.pyfunc.log_model(
                name=material.name,
                python_model=str(CODE[material.name]),
                artifacts=artifacts,
                code_paths=[str(enigma_package())],
                signature=signature,
                input_example=example,
                # Named here, or MLflow would run the model to infer them.
                pip_requirements=[_pinned(name) for name in REQUIREMENTS],
            )
        _sign(client, info, material, tags, key)
        # It prints what is logged here too, past every log level.
        with redirect_stderr(io.StringIO()):
            version = str(mlflow.register_model(info.model_uri, material.name).version)
    client.update_registered_model(material.name, description=summary)
    client.update_model_version(material.name, version, description=card.markdown())
    # The content hash is set last: with it, the version counts as registered.
    for tag, value in sorted(tags.items(), key=lambda item: item[0] == "content_sha256"):
        client.set_model_version_tag(material.name, version, tag, value)
    return version


def _is_whole(client: Any, material: Material, version: str) -> bool:
    """Whether an earlier version of the same content can serve: else it is registered again.

    It must be stored as a key signed it that is trusted now, be what its stages made, name the
    commit that made it, know every stage that made the files, and be closed to compiled code.
    """
    known = trust()
    try:
        with downloaded(client, material.name, version) as stored:
            gates = evidence_gates(stored.directory, known, name=material.name, tags=stored.tags)
            if all(gate.holds for gate in gates):
                gates += full_evidence_gates(stored.directory, known)
            guarded = (stored.directory / COMPILED).is_file()
            stages = _stages(stored.artifacts / "proof" / LOCK_FILE)
    except UserError:
        return False
    made = _stages(material.proof[LOCK_FILE])
    return (
        guarded
        and made <= stages
        and all(gate.holds for gate in (commit_gate(stored.tags), *gates))
    )


def _stages(lock: Path) -> set[str]:
    try:
        return set(read_lock(lock))
    except GateError:
        return set()


def _sign(
    client: Any, info: Any, material: Material, tags: Mapping[str, str], key: CryptoSigner
) -> None:
    """Close the files to compiled code and sign them as stored: no version lacks its evidence."""
    import mlflow

    with tempfile.TemporaryDirectory() as temporary:
        write_guards(Path(temporary))
        client.log_model_artifacts(info.model_id, temporary)
    with tempfile.TemporaryDirectory() as temporary:
        stored = Path(mlflow.artifacts.download_artifacts(info.model_uri, dst_path=temporary))
        proof = Proof.read(stored, material.name)
        gates = flow_gates(proof) if material.name == FLOW else lm_gates(proof)
        facts = {
            "model": material.name,
            "model_id": info.model_id,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "tags": dict(tags),
            "gates": [asdict(gate) for gate in gates],
        }
        environment = {name: tags[name] for name in ("git_commit", "git_dirty")}
        lock = stored / "artifacts" / "proof" / LOCK_FILE
        links = stage_links(lock, environment, material.made)
        evidence = sign_version(stored, facts, links, key)
        client.log_model_artifacts(info.model_id, str(evidence), FOLDER)


def _facts(material: Material, tags: Mapping[str, str], summary: str) -> Facts:
    """Collect what the documents in published formats are made of."""
    params = load_params()
    raw = Workspace(params.name).raw
    environment = material.proof[ENVIRONMENT_FILE].read_text(encoding="utf-8")
    return Facts(
        model=material.name,
        profile=params.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        summary=summary,
        tags=tags,
        source=params.profile.ingest.source,
        raw=read_manifest(raw) if (raw / MANIFEST_NAME).is_file() else {},
        packages=read_packages(environment),
    )


def _continuations(client: Any, material: Material) -> str:
    """Return the page of texts, beside those of the champion if they can be read."""
    mine = read_json(material.proof["evaluation.json"])["continuations"]
    champion, number = None, aliased(client, LM, CHAMPION)
    if number is not None:
        try:
            with downloaded(client, LM, number) as version:
                # Older evaluations have none.
                champion = version.proof.evaluation.get("continuations")
        except UserError as error:
            # A damaged champion must not keep its successor out.
            logger.warning("the card has no texts of the champion: %s", error.problem)
    beside = "" if champion is None else f", beside the champion, version {number}"
    return continuations_page(f"Continuations of {material.name}{beside}", mine, champion)


def _card_tables(material: Material, tags: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the material's tables and the tags, each fact once: figures first, hashes last."""
    tables = {
        heading: {name: value for name, value in rows.items() if tags.get(name) != value}
        for heading, rows in material.card_tables.items()
    }
    figures = {
        name
        for rows in tables.values()
        for name, value in rows.items()
        if not isinstance(value, str)
    }
    provenance = {name: value for name, value in tags.items() if name not in figures}
    return {**tables, "Provenance": provenance}


def _tags(material: Material, content: str, profile: str, key_id: str) -> dict[str, str]:
    training = read_json(material.proof["training.json"])
    tags = {
        **GitState.read().tags(),
        "profile": profile,
        "shards_root": training["shards_root"],
        "content_sha256": content,
        "signed_by": key_id,
        **material.facts,
        **{tag: sha256_file(material.proof[file]) for file, tag in RECORDED.items()},
    }
    return flatten(tags)


def _run(client: Any, material: Material) -> Any:
    """Reopen the run of the training; start a new one if it does not exist any more."""
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
        logger.warning("run %s is not in this store; starting a new one", run_id)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return mlflow.start_run(
        experiment_id=experiment.experiment_id, run_name=f"register {material.name}"
    )


def _pinned(name: str) -> str:
    # No public index has "2.13.0+cpu".
    return f"{name}=={installed_version(name).split('+')[0]}"


def _signature(name: str) -> tuple[Any, Any]:
    """Return the signature of a model and an example of its input."""
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    types = {int: "long", float: "double"}
    sampling = {"seed": 0} if name == FLOW else asdict(Sampling())
    params = [ParamSpec(key, types[type(value)], value) for key, value in sampling.items()]
    output = ColSpec("double", "nll_nats_per_dim") if name == FLOW else ColSpec("string", "text")
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]),
        outputs=Schema([output]),
        params=ParamSchema(params),
    )
    return signature, pd.DataFrame({"prompt": ["却说曹操"]})
