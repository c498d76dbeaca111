"""Helpers that tests of several rooms call by name (fixtures are in conftest.py)."""

import multiprocessing
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from pipelines.base.artifacts import write_json, write_manifest
from pipelines.base.workspace import Workspace
from pipelines.count_ngrams import count_ngrams
from pipelines.data.shards import (
    DOCUMENT_SCHEMA,
    SEQUENCE_SCHEMA,
    ShardWriter,
    count_train_ids,
)
from pipelines.data.text.shard_vocabulary import ShardVocabulary
from pipelines.data.text.vocabulary import vocabulary_tokens

REPOSITORY = Path(__file__).resolve().parent.parent
WIKI_SAMPLE = REPOSITORY.parent / "shared" / "data" / "wiki_zh_sample.parquet"

LENGTH = 16
SEQUENCES = {"train": 64, "validation": 8, "test": 8}
TINY_POSSIBLE = 13_000
TINY_NGRAMS = {"order": 3, "min_token_count": 24, "max_entries": 100_000}
TINY_RUN = {
    "count_ngrams": None,
    "model.d": 16,
    "model.num_heads": 2,
    "model.num_transformer_layers": 1,
    "model.num_rev_blocks": 1,
    "model.num_rotors": 1,
    "model.conv1x1_positions": 4,
    "model.attention_dropout": 0.1,
    "model.hidden_dropout": 0.0,
    "tokenize.sequence_length": LENGTH,
    "train.batch_size": 4,
    "train.epochs": 1,
    "train.optimiser": "adamw",
    "train.learning_rate": 3.0e-3,
    "train.weight_decay": 0.01,
    "train.max_steps": 6,
    "train.evaluate_every_steps": 2,
    "train.log_every_steps": 1,
    "train.max_validation_sequences": 4,
}


def change_params(path: Path, values: dict[str, Any]) -> None:
    """Change dotted names in a `params.yaml`, keeping its comments."""
    yaml = YAML()
    params = yaml.load(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        *parents, leaf = (
            name[1:].split(".")
            if name.startswith(".")
            else ["profiles", "sanguo", *name.split(".")]
        )
        node = params
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    with path.open("w", encoding="utf-8") as stream:
        yaml.dump(params, stream)


def write_base_vocabulary(directory: Path, length: int) -> None:
    """Write bert-base-chinese beside shards, every id from `TINY_POSSIBLE` on impossible."""
    tokens = vocabulary_tokens("bert-base-chinese")
    possible_V = np.arange(len(tokens)) < TINY_POSSIBLE
    counts_V = count_train_ids(directory, length, len(tokens))
    ShardVocabulary(tokens, possible_V, counts_V).write(directory)


def make_tiny_shards() -> Path:
    """Small shards of a learnable text, with their certificate, and the manifest of no n-grams."""
    directory = Workspace("sanguo").shards
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in SEQUENCES.items():
        writer = ShardWriter(directory, split, sequence_length=LENGTH, sequences_per_shard=40)
        tokens_NL = rng.integers(1000, 1040, size=(count, LENGTH)).astype(np.uint16)
        writer.append(tokens_NL)
        characters = [LENGTH - 1] * count
        columns = [list(range(count)), characters, [0] * count]
        pq.write_table(
            pa.table(columns, schema=SEQUENCE_SCHEMA), directory / f"{split}.sequences.parquet"
        )
        documents = pa.table([["1"], ["t"], [0], [count * LENGTH]], schema=DOCUMENT_SCHEMA)
        pq.write_table(documents, directory / f"{split}.documents.parquet")
    facts = {
        "sequence_length": LENGTH,
        "vocabulary": "bert-base-chinese",
        "lower_case": True,
        "vocabulary_size": 21128,
        "eos_token_id": 102,
        "unk_token_id": 100,
        "sequences": SEQUENCES,
    }
    write_base_vocabulary(directory, LENGTH)
    root = write_manifest(directory, stage="decontaminate", facts=facts)
    certificate = Workspace("sanguo").report("validate") / "certificate.json"
    write_json(certificate, {"passed": True, "shards_root": root})
    count_ngrams(None, directory, certificate, Workspace("sanguo").ngrams)
    return directory


def start_training() -> subprocess.Popen[str]:
    """Start the stage `train` in the working directory."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.train"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train_to_the_end() -> str:
    """Run the stage `train` and return what it printed."""
    process = start_training()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-4000:]
    return output


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Wait for something that a running process does."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline, "nothing happened in five minutes"
        time.sleep(0.02)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Kill -9 a process and all its descendants."""
    tree = psutil.Process(process.pid)
    for member in [*tree.children(recursive=True), tree]:
        member.kill()
    process.communicate()


def free_port() -> int:
    """Find a port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fresh_processes() -> ForkServerContext:
    """A `multiprocessing` context whose processes start with MLflow's stores imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "mlflow.store.artifact.models_artifact_repo",
            "mlflow.store.model_registry.sqlalchemy_store",
            "mlflow.store.tracking.sqlalchemy_store",
        ]
    )
    return context
