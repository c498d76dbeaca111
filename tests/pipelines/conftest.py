"""Corpora, shards and a registered project that several test files share."""

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.base.artifacts import write_manifest
from pipelines.base.workspace import SPLITS
from pipelines.clean import clean
from pipelines.data.shards import DOCUMENT_SCHEMA, SEQUENCE_SCHEMA, ShardWriter
from pipelines.data.text.documents import RAW_SCHEMA
from pipelines.decontaminate import decontaminate
from pipelines.ingest import ingest
from pipelines.params import Profile, load_params
from pipelines.registry.names import MODELS
from pipelines.registry.promote import promote
from pipelines.registry.register import register
from pipelines.tokenize import tokenize
from pipelines.tracking.run_log import RunLog
from tests.finished import copy_project, write_finished_project, write_lock, write_losses
from tests.support import REPOSITORY, write_base_vocabulary

WriteCorpus = Callable[..., Path]
WriteShards = Callable[..., Path]


@pytest.fixture(scope="session")
def profile() -> Profile:
    """The shipped profile `sanguo`."""
    return load_params(REPOSITORY / "params.yaml").profile


@pytest.fixture
def prose() -> Callable[[int, int], str]:
    """Call it as `prose(seed, characters)`: random Chinese characters, different for each seed."""

    def write(seed: int, characters: int) -> str:
        generator = random.Random(seed)
        return "".join(chr(generator.randrange(0x4E00, 0x9F00)) for _ in range(characters))

    return write


@pytest.fixture
def write_corpus(tmp_path: Path) -> WriteCorpus:
    """Call it as `write_corpus(texts, titles=..., name=...)`: a parquet file of documents."""

    def write(
        texts: Sequence[str], titles: Sequence[str] | None = None, name: str = "corpus.parquet"
    ) -> Path:
        ids = [f"d{index:04d}" for index in range(len(texts))]
        columns = {
            "id": ids,
            "url": [""] * len(texts),
            "title": list(titles) if titles is not None else [f"title {i}" for i in ids],
            "text": list(texts),
        }
        path = tmp_path / name
        pq.write_table(pa.table(columns, schema=RAW_SCHEMA), path)
        return path

    return write


@pytest.fixture
def write_raw(write_corpus: WriteCorpus, profile: Profile, tmp_path: Path) -> WriteCorpus:
    """Call it as `write_corpus`: ingests the corpus, and returns the raw directory."""

    def write(texts: Sequence[str], titles: Sequence[str] | None = None) -> Path:
        source = str(write_corpus(texts, titles))
        output = tmp_path / "raw"
        ingest(profile.ingest.model_copy(update={"source": source}), output)
        return output

    return write


@pytest.fixture
def raw_parts(
    write_corpus: WriteCorpus, prose: Callable[[int, int], str], profile: Profile, tmp_path: Path
) -> Path:
    """A corpus in 12 parts, with copies across them."""
    texts = [prose(seed, 300) for seed in range(200)]
    texts += [f"{text[:150]}新{text[151:]}" for text in texts[:40]]
    params = profile.ingest.model_copy(
        update={"source": str(write_corpus(texts)), "documents_per_file": 20}
    )
    ingest(params, tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def write_shards(tmp_path: Path) -> WriteShards:
    """Call it as `write_shards({"train": tokens_NL, ...})`: a directory as `tokenize` writes it."""

    def write(splits: dict[str, np.ndarray], name: str = "tokens") -> Path:
        directory = tmp_path / name
        directory.mkdir()
        length = splits["train"].shape[1]
        for split in SPLITS:
            writer = ShardWriter(directory, split, sequence_length=length, sequences_per_shard=7)
            writer.append(splits[split])
            count = len(splits[split])
            sequences = {
                "source_sequence": np.arange(count),
                "characters": np.full(count, length - 1),
                "unk_characters": np.zeros(count, int),
            }
            documents = {
                "id": [f"{split}-id"],
                "title": [f"{split} title"],
                "start_token": [0],
                "num_tokens": [count * length],
            }
            for table, schema in ((sequences, SEQUENCE_SCHEMA), (documents, DOCUMENT_SCHEMA)):
                kind = "sequences" if schema is SEQUENCE_SCHEMA else "documents"
                pq.write_table(
                    pa.table(table, schema=schema), directory / f"{split}.{kind}.parquet"
                )
        facts = {
            "sequence_length": length,
            "sequences_per_shard": 7,
            "vocabulary": "bert-base-chinese",
            "lower_case": True,
            "vocabulary_size": 21128,
            "vocabulary_sha256": "",
            "eos_token_id": 102,
            "unk_token_id": 100,
            "sequences": {split: len(splits[split]) for split in SPLITS},
        }
        write_base_vocabulary(directory, length)
        write_manifest(directory, stage="tokenize", facts=facts)
        return directory

    return write


@pytest.fixture
def random_tokens() -> Callable[[int, int], np.ndarray]:
    """Call it as `random_tokens(seed, count)`: (count, 32) uint16 of Chinese characters."""

    def draw(seed: int, count: int) -> np.ndarray:
        generator = np.random.default_rng(seed)
        return generator.integers(670, 7992, size=(count, 32), dtype=np.uint16)

    return draw


@pytest.fixture(scope="session")
def sanguo(tmp_path_factory: pytest.TempPathFactory, profile: Profile) -> Path:
    """The novel as `raw`, `documents`, `tokens`, `shards` and `overlap.json`; only read it."""
    directory = tmp_path_factory.mktemp("sanguo")
    ingest(profile.ingest, directory / "raw")
    clean(profile.clean, directory / "raw", directory / "documents")
    tokenize(profile.tokenize, directory / "documents", directory / "tokens")
    decontaminate(
        profile.decontaminate,
        directory / "tokens",
        directory / "shards",
        directory / "overlap.json",
    )
    return directory


@pytest.fixture
def finished(workspace: Path, tables: None) -> Path:
    """A finished project with an empty store."""
    write_finished_project(workspace, None)
    return workspace


@pytest.fixture(scope="session")
def registered_project(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project with two versions of each model: 1 is champion, 2 is candidate."""
    directory = tmp_path_factory.mktemp("registered")
    shutil.copy(migrated_store, directory / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{directory}/mlflow.db")
        patch.chdir(directory)
        run_log = RunLog.open(run_name="train", params={}, tags={})
        run_log.finish("FINISHED")
        write_finished_project(directory, run_log.run_id)
        for name in MODELS:
            assert register(name) == "1"
            assert promote(name).outcome == "promoted"
        write_losses(directory, better_by=0.02, noise=0.01)
        write_lock(directory)
        for name in MODELS:
            assert register(name) == "2"
    return directory


@pytest.fixture
def store(registered_project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the registered project; a test must leave it unchanged."""
    monkeypatch.chdir(registered_project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registered_project}/mlflow.db")
    return registered_project


@pytest.fixture
def copied_store(registered_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of the registered project, which a test may damage."""
    there = copy_project(registered_project, tmp_path / "project")
    monkeypatch.chdir(there)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{there}/mlflow.db")
    return there
