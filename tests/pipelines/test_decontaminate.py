"""Decontaminate: what is shared is removed, kept aside and counted."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.base.artifacts import read_json, verify_manifest
from pipelines.base.errors import UserError
from pipelines.data.shards import ShardReader
from pipelines.decontaminate import decontaminate
from pipelines.params import DecontaminateParams

PARAMS = DecontaminateParams(window_characters=8, max_containment=0.15)


def everything(directory: Path, split: str) -> np.ndarray:
    return np.concatenate(list(ShardReader(directory, split)))


@pytest.fixture
def planted(random_tokens, write_shards) -> tuple[dict[str, np.ndarray], Path]:
    """Train shares 3 sequences with validation and test, validation 1 with test."""
    splits = {
        "train": random_tokens(0, 40),
        "validation": random_tokens(1, 10),
        "test": random_tokens(2, 9),
    }
    splits["train"][8] = splits["validation"][2]
    splits["train"][20] = splits["test"][8]
    splits["train"][39, 4:24] = splits["test"][5, 10:30]
    splits["validation"][0] = splits["test"][3]
    return splits, write_shards(splits)


def test_shared_sequences_are_removed_and_all_others_stay(planted, tmp_path: Path) -> None:
    splits, tokens = planted
    output = tmp_path / "shards"
    decontaminate(PARAMS, tokens, output, tmp_path / "overlap.json")
    manifest = verify_manifest(output)
    assert manifest["sequences"] == {"train": 37, "validation": 9, "test": 9}
    gone = {"train": [8, 20, 39], "validation": [0], "test": []}
    for split, rows in gone.items():
        kept = np.setdiff1d(np.arange(len(splits[split])), rows)
        assert np.array_equal(everything(output, split), splits[split][kept])
        table = ShardReader(output, split).sequences()
        assert table["source_sequence"].to_pylist() == kept.tolist()


def test_what_was_removed_can_be_read(planted, tmp_path: Path) -> None:
    splits, tokens = planted
    output = tmp_path / "shards"
    decontaminate(PARAMS, tokens, output, tmp_path / "overlap.json")
    removed = pq.read_table(output / "removed.parquet").to_pylist()
    facts = {
        (row["split"], row["source_sequence"]): (
            row["matched_split"],
            row["matched_sequence"],
            row["method"],
            row["containment"],
        )
        for row in removed
    }
    # Validation sequence 2 is number 1 once sequence 0 is removed.
    assert facts == {
        ("validation", 0): ("test", 3, "exact", 1.0),
        ("train", 8): ("validation", 1, "exact", 1.0),
        ("train", 20): ("test", 8, "exact", 1.0),
        ("train", 39): ("test", 5, "near", 13 / 25),
    }
    for row in removed:
        assert row["tokens"] == splits[row["split"]][row["source_sequence"]].tolist()
        assert len(row["text"]) >= 32


def test_the_report_counts_before_and_after_by_split_and_method(planted, tmp_path: Path) -> None:
    decontaminate(PARAMS, planted[1], tmp_path / "shards", tmp_path / "overlap.json")
    report = read_json(tmp_path / "overlap.json")
    assert report["train"] == {
        "before": 40,
        "removed": 3,
        "after": 37,
        "removed_percent": 7.5,
        "shared_with": {
            "validation": {"exact": 1, "near": 0, "title": 0},
            "test": {"exact": 1, "near": 1, "title": 0},
        },
    }
    assert report["validation"]["shared_with"] == {"test": {"exact": 1, "near": 0, "title": 0}}
    assert report["test"]["removed"] == 0
    assert report["max_containment"] == 0.15


def test_documents_with_a_shared_title_are_removed_with_their_sequences(
    random_tokens, write_shards, tmp_path: Path
) -> None:
    """Train document b covers the end of sequence 1, all of 2 and the start of 3."""
    splits = {
        name: random_tokens(seed, 6) for seed, name in enumerate(("train", "validation", "test"))
    }
    tokens = write_shards(splits)
    documents = {
        "id": ["a", "b", "c", "d"],
        "title": ["甲", "Test　Title", "丙", ""],
        "start_token": [0, 50, 100, 150],
        "num_tokens": [50, 50, 50, 42],
    }
    schema = pq.read_schema(tokens / "train.documents.parquet")
    pq.write_table(pa.table(documents, schema=schema), tokens / "train.documents.parquet")
    output = tmp_path / "shards"
    decontaminate(PARAMS, tokens, output, tmp_path / "overlap.json")
    assert np.array_equal(everything(output, "train"), splits["train"][[0, 4, 5]])
    assert pq.read_table(output / "train.documents.parquet")["id"].to_pylist() == ["a", "c", "d"]
    report = read_json(tmp_path / "overlap.json")["train"]
    assert report["shared_with"]["test"] == {"exact": 0, "near": 0, "title": 3}
    removed = pq.read_table(output / "removed.parquet").to_pylist()
    assert [row["method"] for row in removed] == ["title"] * 3


def test_a_clean_corpus_passes_unchanged(random_tokens, write_shards, tmp_path: Path) -> None:
    splits = {
        name: random_tokens(seed, 9) for seed, name in enumerate(("train", "validation", "test"))
    }
    tokens = write_shards(splits)
    decontaminate(PARAMS, tokens, tmp_path / "shards", tmp_path / "overlap.json")
    for split, sequences in splits.items():
        assert np.array_equal(everything(tmp_path / "shards", split), sequences)
    assert len(pq.read_table(tmp_path / "shards" / "removed.parquet")) == 0


def test_a_window_longer_than_a_sequence_is_refused(planted, tmp_path: Path) -> None:
    params = DecontaminateParams(window_characters=33, max_containment=0.15)
    with pytest.raises(UserError, match="expected at most the sequence length 32, got 33"):
        decontaminate(params, planted[1], tmp_path / "shards", tmp_path / "overlap.json")
    assert not (tmp_path / "shards").exists()


def test_a_truncated_shard_is_refused(planted, tmp_path: Path) -> None:
    path = planted[1] / "train-00001.bin"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="expected whole sequences of 64 bytes"):
        decontaminate(PARAMS, planted[1], tmp_path / "shards", tmp_path / "overlap.json")
    assert not (tmp_path / "shards").exists()


def test_the_novel_shares_no_sequence(sanguo: Path) -> None:
    report = read_json(sanguo / "overlap.json")
    assert report["train"]["before"] == report["train"]["after"] == 2106


@pytest.mark.slow
def test_wikipedia_loses_template_text_and_little_else(
    wiki_sample: Path, profile, tmp_path: Path
) -> None:
    from pipelines.clean import clean
    from pipelines.ingest import ingest
    from pipelines.tokenize import tokenize

    source = profile.ingest.model_copy(update={"source": str(wiki_sample), "max_documents": 2000})
    ingest(source, tmp_path / "raw")
    clean(profile.clean, tmp_path / "raw", tmp_path / "documents")
    tokenize(profile.tokenize, tmp_path / "documents", tmp_path / "tokens")
    decontaminate(
        profile.decontaminate, tmp_path / "tokens", tmp_path / "shards", tmp_path / "overlap.json"
    )
    train = read_json(tmp_path / "overlap.json")["train"]
    assert 0 < train["removed"] < 0.02 * train["before"]
