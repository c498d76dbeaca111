"""Validate: good data gets a certificate, and one shared sequence stops everything."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expectations.overlap import METHODS
from pipelines.base.artifacts import read_json, read_manifest, write_json, write_manifest
from pipelines.base.errors import GateError, UserError
from pipelines.base.workspace import SPLITS, Workspace
from pipelines.data.audit.evidence import documents_table, shards_table
from pipelines.validate import validate
from tests.support import REPOSITORY

WIDTH = 512


@pytest.fixture
def data(sanguo: Path, workspace: Path) -> Workspace:
    """The finished novel in a working directory that a test may change."""
    novel = Workspace("sanguo")
    # Copies, as tests write into the files.
    shutil.copytree(sanguo / "raw", novel.raw)
    shutil.copytree(sanguo / "documents", novel.documents)
    shutil.copytree(sanguo / "shards", novel.shards)
    return novel


def plant(directory: Path, row: int, sequence: bytes) -> None:
    """Overwrite one train sequence."""
    path = directory / "train-00000.bin"
    content = path.read_bytes()
    path.write_bytes(content[: row * WIDTH] + sequence + content[(row + 1) * WIDTH :])


def seal(directory: Path) -> None:
    """Write a new manifest, so that only the recount can notice a change."""
    manifest = read_manifest(directory)
    facts = {key: manifest[key] for key in manifest if key not in ("stage", "root", "files")}
    write_manifest(directory, stage=manifest["stage"], facts=facts)


def run(profile, workspace: Workspace) -> None:
    validate(profile.validation, profile.decontaminate, workspace)


def test_good_data_gets_a_certificate(data: Workspace, profile) -> None:
    report = data.report("validate")
    # What an earlier refusal left is deleted once the data are good.
    report.with_name("validate-failed").mkdir(parents=True)
    run(profile, data)
    certificate = read_json(report / "certificate.json")
    assert certificate["passed"] is True
    assert certificate["shards_root"] == read_manifest(data.shards)["root"]
    assert certificate["documents_root"] == read_manifest(data.documents)["root"]
    assert certificate["raw_root"] == read_manifest(data.raw)["root"]
    assert certificate["sequences"] == {"train": 2106, "validation": 95, "test": 120}
    pairs = ("train/validation", "train/test", "validation/test")
    assert certificate["overlap"] == dict.fromkeys(pairs, dict.fromkeys(METHODS, 0))
    held = certificate["shares"]["train/test"]["heldout_sequence"]
    assert held["compared"] == 120
    assert 0 < held["mean_share"] < held["p99_share"] <= held["max_share"] <= 0.15
    assert certificate["shares"]["train/validation"]["heldout_document"]["compared"] == 5
    assert "at least 24 windows" in certificate["measured"]["unit"]
    assert "above 15%" in certificate["measured"]["share"]
    suites = {suite["name"]: suite for suite in certificate["suites"]}
    assert list(suites) == ["raw", "documents", "shards", "overlap"]
    assert all(suite["evaluated"] > 10 and suite["failed"] == 0 for suite in suites.values())
    assert len(pq.read_table(report / "evidence.parquet")) == 18
    assert (report / "data_docs" / "index.html").is_file()
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "passed" in page
    assert "http" not in page.replace("https://pypi", "")
    links = re.findall('href="(data_docs/validations/[^"]*)"', page)
    assert len(links) == 4
    assert all((report / link).is_file() for link in links)
    assert not report.with_name("validate-failed").exists()
    run(profile, data)
    assert read_json(report / "certificate.json") == certificate


@pytest.mark.parametrize("sealed", [True, False], ids=["new manifest", "old manifest"])
def test_one_planted_duplicate_is_named(data: Workspace, profile, sealed: bool) -> None:
    write_json(data.report("validate") / "certificate.json", {"passed": True})
    validation = (data.shards / "validation-00000.bin").read_bytes()
    plant(data.shards, 7, validation[3 * WIDTH : 4 * WIDTH])
    if sealed:
        seal(data.shards)
    with pytest.raises(GateError) as caught:
        run(profile, data)
    assert caught.value.gate == "validate"
    message = str(caught.value)
    assert "suite `overlap`: expect_column_values_to_be_between(column='shared'" in message
    assert "train sequence 7 equals validation sequence 3" in message
    assert "train sequence 7: validation has 100.0% of its " in message
    assert "most of them in sequence 3: 却说单福正与玄德" in message
    assert ("files_changed" in message) is not sealed
    # The old certificate is gone; DVC does not delete the report here.
    assert not data.report("validate").exists()
    failed = data.report("validate-failed")
    assert read_json(failed / "certificate.json")["passed"] is False
    assert "train sequence 7 equals validation sequence 3" in (failed / "index.html").read_text(
        encoding="utf-8"
    )


@pytest.mark.slow
def test_the_command_ends_with_1_and_no_traceback(data: Workspace, workspace: Path) -> None:
    test = (data.shards / "test-00000.bin").read_bytes()
    plant(data.shards, 2105, test[:WIDTH])
    seal(data.shards)
    process = subprocess.run(
        [sys.executable, "-m", "pipelines.validate"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert "error: gate `validate` refused" in process.stderr
    assert "train sequence 2105 equals test sequence 0" in process.stderr
    assert "Traceback" not in process.stderr


def test_an_edited_copy_is_refused_too(data: Workspace, profile) -> None:
    sequence = np.fromfile(data.shards / "test-00000.bin", dtype="<u2")[: WIDTH // 2].copy()
    sequence[::20] = 671
    plant(data.shards, 5, sequence.tobytes())
    seal(data.shards)
    with pytest.raises(GateError, match="train sequence 5: test has") as caught:
        run(profile, data)
    assert "test sequence 0: train has" in str(caught.value)
    assert "column='max_share'" in str(caught.value)


def test_files_that_cannot_be_read_are_named(data: Workspace, profile) -> None:
    path = data.documents / "train.parquet"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="got a file that cannot be read"):
        run(profile, data)
    path.unlink()
    with pytest.raises(UserError, match=r"train\.parquet"):
        run(profile, data)


def damage(path: Path) -> None:
    """Change a parquet file in a way that only its hash shows."""
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"damaged": "yes"}), path)


def test_changed_files_of_no_split_are_refused(data: Workspace, profile) -> None:
    for name in ("vocabulary.parquet", "removed.parquet"):
        damage(data.shards / name)
    with pytest.raises(GateError, match=r"suite `shards`.*files_changed.*\[2, 2, 2\]"):
        run(profile, data)


def test_documents_and_raw_files_that_are_not_those_of_the_root_are_refused(
    data: Workspace, profile
) -> None:
    """Documents of test take the place of some of train, in every respect but their text."""
    path = data.documents / "train.parquet"
    train, test = (pq.read_table(data.documents / f"{split}.parquet") for split in SPLITS[::2])
    texts = [*test["text"].to_pylist(), *train["text"].to_pylist()[len(test) :]]
    pq.write_table(train.set_column(3, "text", pa.array(texts)), path)
    damage(next(data.raw.glob("*.parquet")))
    with pytest.raises(GateError) as caught:
        run(profile, data)
    assert re.search("suite `documents`.*files_changed", str(caught.value))
    assert re.search("suite `raw`.*files_changed", str(caught.value))
    assert len(str(caught.value).splitlines()) == 4


def test_a_truncated_shard_is_named(data: Workspace, profile) -> None:
    path = data.shards / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="expected whole sequences of 512 bytes"):
        run(profile, data)


def test_document_evidence_sees_a_cluster_in_two_splits(data: Workspace) -> None:
    train = pq.read_table(data.documents / "train.parquet")
    path = data.documents / "test.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(path), train.slice(0, 1)]), path)
    rows = documents_table(data.documents).set_index("split")
    assert rows.loc["train", "clusters_elsewhere"] == 1
    assert rows.loc["test", "clusters_elsewhere"] == 1
    assert rows.loc["test", "repeated_ids"] == 1
    assert rows.loc["validation", "repeated_ids"] == 0


def test_shard_evidence_counts_from_the_bytes(data: Workspace) -> None:
    sequence = np.full(256, 30_000, dtype="<u2")
    sequence[:64] = 100
    path = data.shards / "validation-00000.bin"
    path.write_bytes(path.read_bytes() + sequence.tobytes())
    rows = shards_table(data.shards, documents_table(data.documents)).set_index("split")
    row = rows.loc["validation"]
    assert row["sequences"] == 96
    assert row["manifest_sequences_off"] == row["side_rows_off"] == 1
    assert rows["files_changed"].tolist() == [1, 1, 1]
    assert row["largest_id"] == 30_000
    tokens = np.fromfile(path, dtype="<u2")
    assert row["unk_rate"] == pytest.approx((tokens == 100).mean())


def test_shard_evidence_recounts_the_vocabulary(data: Workspace) -> None:
    """[PAD], which no text makes, takes the place of a whole train sequence."""
    first = np.fromfile(data.shards / "train-00000.bin", dtype="<u2", count=256)
    plant(data.shards, 0, bytes(2 * len(first)))
    rows = shards_table(data.shards, documents_table(data.documents)).set_index("split")
    assert rows["impossible_tokens"].to_dict() == {"train": 256, "validation": 0, "test": 0}
    assert rows.loc["train", "miscounted_ids"] == len(np.unique(first)) + 1
    assert rows.loc["test", "miscounted_ids"] == 0


def test_sequences_that_repeat_in_a_split_are_counted_and_refused(data: Workspace, profile) -> None:
    train = (data.shards / "train-00000.bin").read_bytes()
    for row in range(100, 140):
        plant(data.shards, row, train[:WIDTH])
    seal(data.shards)
    table = shards_table(data.shards, documents_table(data.documents)).set_index("split")
    assert table["duplicate_rate"]["train"] == pytest.approx(40 / 2106)
    assert table["duplicate_rate"]["test"] == 0.0
    with pytest.raises(GateError, match="duplicate_rate"):
        run(profile, data)


def test_a_placeholder_cluster_in_validation_is_refused(data: Workspace, profile) -> None:
    """Documents of one cluster, 40 % of the corpus, as a join by title alone would make it."""
    tables = {
        split: pq.read_table(data.documents / f"{split}.parquet")
        for split in ("train", "validation")
    }
    moved = tables["train"].slice(0, 48)
    names = pa.array([moved["cluster"][0].as_py()] * 48)
    moved = moved.set_column(moved.schema.get_field_index("cluster"), "cluster", names)
    tables["validation"] = pa.concat_tables([tables["validation"], moved])
    tables["train"] = tables["train"].slice(48)
    for split, table in tables.items():
        pq.write_table(table, data.documents / f"{split}.parquet")
    rows = documents_table(data.documents).set_index("split")
    assert rows.loc["validation", "documents_deviation_sigmas"] > 10
    assert rows.loc["validation", "characters_deviation_sigmas"] > 10
    # The number of clusters says nothing.
    assert abs(rows.loc["validation", "deviation_sigmas"]) < 3
    with pytest.raises(GateError, match="documents_deviation_sigmas") as caught:
        run(profile, data)
    assert "characters_deviation_sigmas" in str(caught.value)


def test_one_document_of_most_characters_in_validation_is_refused(data: Workspace, profile) -> None:
    path = data.documents / "validation.parquet"
    table = pq.read_table(path)
    texts = table["text"].to_pylist()
    texts[0] *= 60
    pq.write_table(table.set_column(3, "text", pa.array(texts)), path)
    rows = documents_table(data.documents).set_index("split")
    assert abs(rows.loc["validation", "documents_deviation_sigmas"]) < 3
    with pytest.raises(GateError, match="characters_deviation_sigmas"):
        run(profile, data)


def test_a_train_that_lost_most_of_its_tokens_is_refused(data: Workspace, profile) -> None:
    path = data.shards / "train-00000.bin"
    path.write_bytes(path.read_bytes()[: 700 * WIDTH])
    rows = data.shards / "train.sequences.parquet"
    pq.write_table(pq.read_table(rows).slice(0, 700), rows)
    seal(data.shards)
    documents = documents_table(data.documents)
    rows = shards_table(data.shards, documents).set_index("split")
    assert rows.loc["validation", "fraction_ratio"] > 2
    assert rows["characters_fraction"].tolist() == documents["characters_fraction"].tolist()
    with pytest.raises(GateError, match="fraction_ratio"):
        run(profile, data)


def test_a_split_of_other_characters_is_refused(data: Workspace, profile) -> None:
    latin = np.random.default_rng(0).integers(8000, 9000, (120, WIDTH // 2), dtype=np.uint16)
    latin[:, 0] = 102
    latin.astype("<u2").tofile(data.shards / "test-00000.bin")
    seal(data.shards)
    assert (
        shards_table(data.shards, documents_table(data.documents)).set_index("split")["drift_bits"][
            "test"
        ]
        > 0.9
    )
    with pytest.raises(GateError, match="drift_bits"):
        run(profile, data)
