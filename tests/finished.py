"""A project as `dvc repro` leaves it, in a second: tiny real models, hand-made reports.

    python -m tests.finished

As a stage of a graph: writes the outputs into the working directory, for a run that it
logs to MLflow as the training does.
"""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB
from dvc_objects.fs.local import LocalFileSystem
from ruamel.yaml import YAML

from pipelines.base.artifacts import sha256_file, write_json, write_manifest
from pipelines.data.text.documents import RAW_SCHEMA
from pipelines.language_model.losses import Losses
from pipelines.language_model.scoring import Score, Span
from pipelines.tracking.relocate import relocate
from pipelines.tracking.run_log import RunLog
from tests.support import REPOSITORY

SHARDS_ROOT = "5" * 64
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SPAN = Span(tokens=4000, characters=4000, unk_characters=4)
DOCUMENTS = 40
TEXT_FIGURES = {"repetition_rate": 0.1, "distinct_2": 0.8, "word_share": 0.5}
CONTINUATIONS = {
    **TEXT_FIGURES,
    "temperature": 0.85,
    "top_p": 0.95,
    "real": TEXT_FIGURES,
    "texts": [{"prompt": "却说", "real": "曹操大喜", "generated": "玄德<i>大惊"}],
}


def write_finished_project(directory: Path, run_id: str | None) -> None:
    """Write models, reports and parameters of the profile `sanguo` that pass every gate."""
    (directory / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    write_outputs(directory, run_id)
    write_lock(directory)
    commit(directory)


def write_lock(directory: Path) -> None:
    """Write the lock of the stages that decide a version: parameters and outputs as they are."""
    yaml = YAML(typ="safe")
    profile = yaml.load((directory / "params.yaml").read_text(encoding="utf-8"))["profiles"][
        "sanguo"
    ]
    graph = yaml.load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stages = {
        stage: {
            "cmd": graph[stage]["cmd"],
            "params": {"params.yaml": {f"profiles.sanguo.{stage}": profile[stage]}},
            "outs": [*_outputs(directory, graph[stage])],
        }
        for stage in ("validate", "train", "evaluate", "train_flow", "sample_flow")
    }
    with (directory / "dvc.lock").open("w", encoding="utf-8") as stream:
        yaml.dump({"schema": "2.0", "stages": stages}, stream)


def _outputs(directory: Path, stage: dict[str, Any]) -> Iterator[dict[str, str]]:
    """What a stage of the real graph left here, by the hashes of DVC's own code."""
    files = LocalFileSystem()
    # Of a dry run, which stores nothing there.
    store = HashFileDB(files, str(directory / "cache"))
    for entry in [*stage["outs"], *stage.get("metrics", [])]:
        path = entry.replace("${profile}", "sanguo")
        if (directory / path).exists():
            made = build(store, str(directory / path), files, "md5", dry_run=True)[2]
            yield {"path": path, "md5": made.hash_info.value}


def copy_project(project: Path, there: Path) -> Path:
    """Copy a registered project, and make the copy's store name its own artifacts."""
    shutil.copytree(project, there)
    adopt_store(there)
    return there


def adopt_store(project: Path) -> None:
    """Make the store of a copied project name the artifacts of the copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
        relocate()


def commit(directory: Path) -> None:
    """Commit parameters and lock: a version must name the commit that made it."""
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for arguments in (
        ("init", "--quiet"),
        ("add", "params.yaml", "dvc.lock"),
        ("commit", "--quiet", "--message", "finished"),
    ):
        subprocess.run(["git", *who, *arguments], cwd=directory, check=True)


def write_outputs(directory: Path, run_id: str | None) -> None:
    """Write the models and reports of a finished project alone."""
    reports, models = directory / "reports" / "sanguo", directory / "models" / "sanguo"
    _write_raw(directory / "data" / "sanguo" / "raw")
    certificate = reports / "validate" / "certificate.json"
    write_json(certificate, _certificate())
    weights = _write_language_model(models / "lm")
    training = {
        "fingerprint": "f" * 64,
        "shards_root": SHARDS_ROOT,
        "certificate_sha256": sha256_file(certificate),
        "best_step": 3,
        "mlflow_run_id": run_id,
        "weights_sha256": weights,
    }
    write_json(models / "lm" / "training.json", training)
    _write_flow(models / "flow")
    flow_training = {
        "lm_fingerprint": "f" * 64,
        "lm_weights_sha256": weights,
        "shards_root": SHARDS_ROOT,
        "noise_std": 0.1,
        "mlflow_run_id": None,
    }
    write_json(models / "flow" / "flow_training.json", flow_training)
    write_json(reports / "train" / "metrics.json", {"best_validation_loss_nats": 4.6})
    write_json(reports / "evaluate" / "evaluation.json", _evaluation(weights))
    write_json(reports / "train_flow" / "metrics.json", {"best_step": 7})
    write_losses(directory, better_by=0.0)
    sampled = {
        "flow_weights_sha256": sha256_file(models / "flow" / "flow.safetensors"),
        "evaluation_set_sha256": "d" * 64,
        "test_nll_nats_per_dim": 0.5,
        "gaussian_test_nll_nats_per_dim": 0.6,
        "two_sample_auc": 0.6,
        "gaussian_two_sample_auc": 0.7,
        "energy_distance": 0.02,
        "gaussian_energy_distance": 0.03,
        "true_jensen_shannon_bits": 0.18,
        "gaussian_true_jensen_shannon_bits": 0.2,
        "round_trip_error": 1e-6,
        "max_round_trip_error": 1e-3,
        "most_frequent_decoded": ["曹"],
    }
    write_json(reports / "sample_flow" / "metrics.json", sampled)
    for stage in ("train", "evaluate", "sample_flow"):
        (reports / stage / "figures").mkdir()
        (reports / stage / "figures" / f"{stage}_curve.png").write_bytes(PNG)


def write_losses(directory: Path, *, better_by: float, noise: float = 0.0) -> None:
    """Write losses by item that add up to what the reports state, and let the reports state it.

    Args:
        directory: The finished project.
        better_by: Nats per unit below the first champion's mean.
        noise: How much the items differ from that, in standard deviations of nats per unit.
    """
    reports = directory / "reports" / "sanguo"
    documents = np.array([f"d{number % DOCUMENTS}" for number in range(80)], dtype=object)
    spread = np.random.default_rng(0).normal(size=80)
    spread -= spread.mean()
    hardness = np.linspace(-1.0, 1.0, 80)
    for stage, mean, units in (("evaluate", 4.6, 50.0), ("sample_flow", -0.1, 48.0)):
        per_unit = mean - better_by + hardness + noise * spread
        Losses(documents, np.full(80, units), per_unit * units).write(
            reports / stage / "losses.parquet"
        )
    evaluation, sampled = (
        reports / "evaluate" / "evaluation.json",
        reports / "sample_flow" / "metrics.json",
    )
    if evaluation.is_file():
        change_json(evaluation, "test", score(4.6 - better_by))
    if sampled.is_file():
        change_json(sampled, "test_nll_nats_per_dim", 0.5 - better_by)


def score(loss_nats: float) -> dict[str, Any]:
    """What a report states of a model with this loss per token."""
    return Score(SPAN, loss_nats * SPAN.tokens).to_dict()


def change_json(path: Path, dotted: str, value: Any) -> None:
    """Change one nested value of a JSON file; names are divided by dots."""
    document = json.loads(path.read_text(encoding="utf-8"))
    *parents, leaf = dotted.split(".")
    node = document
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    path.write_text(json.dumps(document), encoding="utf-8")


def _certificate() -> dict[str, Any]:
    shares = ("near_containment", "heldout_sequence", "heldout_document")
    methods = dict.fromkeys(("exact_sequence", *shares, "document_id", "title"), 0)
    pairs = ("train/validation", "train/test", "validation/test")
    return {
        "passed": True,
        "profile": "sanguo",
        "shards_root": SHARDS_ROOT,
        "overlap": {pair: dict(methods) for pair in pairs},
    }


def _evaluation(weights_sha256: str) -> dict[str, Any]:
    return {
        "weights_sha256": weights_sha256,
        "validation": score(4.6),
        "test": score(4.6),
        "baselines": {"unigram": score(6.2), "5-gram": score(5.2)},
        "round_trip": {"float32": 1e-7, "float32_reversed": 2e-7},
        "causality": {"is_causal": True},
        "generation": {"repetition_rate": 0.1, "samples": ["却说曹操<b>|大喜"]},
        "continuations": CONTINUATIONS,
        "evaluation_set": {"shards_root": SHARDS_ROOT, "sha256": "e" * 64},
        "bounds": {"min_perplexity": 2.0, "max_round_trip_error": 1e-5},
        "alarms": [],
    }


def _write_raw(directory: Path) -> None:
    directory.mkdir(parents=True)
    rows = [dict.fromkeys(RAW_SCHEMA.names, "却说曹操")]
    pq.write_table(pa.Table.from_pylist(rows, RAW_SCHEMA), directory / "part-00000.parquet")
    facts = {"source": "packaged:sanguo", "rows": 1, "characters": 4}
    write_manifest(directory, stage="ingest", facts=facts)


def _write_language_model(directory: Path) -> str:
    import torch

    from enigma.configuration_enigma import EnigmaConfig
    from enigma.modeling_enigma import EnigmaForCausalLM
    from pipelines.data.text.vocabulary import load_tokenizer

    torch.manual_seed(0)
    config = EnigmaConfig(
        d=16, num_heads=2, num_rev_blocks=1, num_rotors=1, num_transformer_layers=1, max_len=32,
        conv1x1_positions=4,
    )  # fmt: skip
    EnigmaForCausalLM(config).save_pretrained(directory)
    load_tokenizer("bert-base-chinese").save_pretrained(directory)
    return sha256_file(directory / "model.safetensors")


def _write_flow(directory: Path) -> None:
    import torch

    from enigma.jacobian_logdet import EnigmaFlow
    from pipelines.flow.documents.document_flow import DIRECTORY, DocumentFlow
    from pipelines.flow.documents.sentence_order import SentenceEnds
    from pipelines.flow.documents.typical import Typical, TypicalLength
    from pipelines.flow.gaussian import Gaussian
    from pipelines.flow.state_flow import StateFlow

    flow = EnigmaFlow.build(16, 1, coupling="affine", hidden_channels=8)
    whitening = Gaussian(torch.zeros(16).double(), torch.eye(16).double())
    states = StateFlow(flow, whitening)
    states.save(directory)
    documents = DocumentFlow(
        states,
        *(Typical([1], [typical], [1.0], [1.0]) for typical in (0.0, 10.0, 12.0, 0.0)),
        TypicalLength([1.0], 1),
        SentenceEnds([], []),
    )
    documents.save(directory / DIRECTORY)


def main() -> None:
    """Log a run and write the outputs."""
    sys.stdout.write("step 1/2\nstep 2/2\n")
    run_log = RunLog.open(run_name="train", params={"steps": 2}, tags={})
    run_log.log(2, {"loss": 1.0})
    run_log.finish("FINISHED")
    write_outputs(Path.cwd(), run_log.run_id)
    docs = Path("reports", "sanguo", "validate", "data_docs", "index.html")
    docs.parent.mkdir()
    docs.write_text("Data Docs", encoding="utf-8")


if __name__ == "__main__":
    main()
