"""Validate: good data gets a certificate, and one shared sequence stops everything."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.base.artifacts import read_json, read_manifest, write_json, write_manifest
from pipelines.base.errors import GateError, UserError
from pipelines.base.workspace import Workspace
from pipelines.data.audit.evidence import divergence_bits, documents_table, raw_table, shards_table
from pipelines.data.audit.recount import known_windows, overlap_table
from pipelines.decontaminate import decontaminate
from pipelines.validate import validate
from tests.support import REPOSITORY

WIDTH = 512


@pytest.fixture
def data(sanguo: Path, profile, workspace: Path) -> Workspace:
    """The finished novel in a working directory that a test may change."""
    place = Workspace("sanguo")
    shutil.copytree(sanguo / "raw", place.raw)
    shutil.copytree(sanguo / "documents", place.documents)
    decontaminate(
        profile.decontaminate,
        sanguo / "tokens",
        place.shards,
        place.report("decontaminate") / "overlap.json",
    )
    return place


def plant(directory: Path, row: int, sequence: bytes) -> None:
    """Overwrite one train sequence."""
    path = directory / "train-00000.bin"
    content = path.read_bytes()
    path.write_bytes(content[: row * WIDTH] + sequence + content[(row + 1) * WIDTH :])


def seal(directory: Path) -> None:
    """Write the manifest anew, so that only the recount can notice."""
    manifest = read_manifest(directory)
    facts = {key: manifest[key] for key in manifest if key not in ("stage", "root", "files")}
    write_manifest(directory, stage=manifest["stage"], facts=facts)


def run(profile, place: Workspace) -> None:
    validate(profile.validation, profile.decontaminate, place)


def test_good_data_gets_a_certificate(data: Workspace, profile) -> None:
    report = data.report("validate")
    # What an earlier refusal left is gone once the data are good.
    report.with_name("validate-failed").mkdir()
    run(profile, data)
    certificate = read_json(report / "certificate.json")
    assert certificate["passed"] is True
    assert certificate["shards_root"] == read_manifest(data.shards)["root"]
    assert certificate["documents_root"] == read_manifest(data.documents)["root"]
    assert certificate["raw_root"] == read_manifest(data.raw)["root"]
    assert certificate["sequences"] == {"train": 2106, "validation": 95, "test": 120}
    methods = {"exact_sequence": 0, "near_containment": 0, "document_id": 0, "title": 0}
    pairs = ("train/validation", "train/test", "validation/test")
    assert certificate["overlap"] == dict.fromkeys(pairs, methods)
    assert 0 < certificate["max_containment"] <= 0.15
    suites = {suite["name"]: suite for suite in certificate["suites"]}
    assert list(suites) == ["raw", "documents", "shards", "overlap"]
    assert all(suite["evaluated"] > 10 and suite["failed"] == 0 for suite in suites.values())
    assert len(pq.read_table(report / "evidence.parquet")) == 12
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
    assert "train sequence 7 is in validation sequence 3: 却说单福正与玄德" in message
    assert ("files_changed" in message) is not sealed
    # The old certificate is gone; the report is where DVC does not delete it.
    assert not data.report("validate").exists()
    failed = data.report("validate-failed")
    assert read_json(failed / "certificate.json")["passed"] is False
    assert "train sequence 7 is in validation sequence 3" in (failed / "index.html").read_text(
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
    assert "train sequence 2105 is in test sequence 0" in process.stderr
    assert "Traceback" not in process.stderr


def test_an_edited_copy_is_refused_too(data: Workspace, profile) -> None:
    sequence = np.fromfile(data.shards / "test-00000.bin", dtype="<u2")[: WIDTH // 2].copy()
    sequence[::20] = 671
    plant(data.shards, 5, sequence.tobytes())
    seal(data.shards)
    with pytest.raises(GateError, match="train sequence 5 is in test sequence 0") as caught:
        run(profile, data)
    assert "max_containment" in str(caught.value)


def test_files_that_cannot_be_read_are_named(data: Workspace, profile) -> None:
    path = data.documents / "train.parquet"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="got a file that cannot be read"):
        run(profile, data)
    path.unlink()
    with pytest.raises(UserError, match=r"train\.parquet"):
        run(profile, data)


def test_a_shard_cut_off_is_named(data: Workspace, profile) -> None:
    path = data.shards / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="expected whole sequences of 512 bytes"):
        run(profile, data)


def test_raw_evidence_counts_what_is_wrong(tmp_path: Path) -> None:
    good = {"id": ["a", "b"], "url": ["", ""], "title": ["", ""], "text": ["一", ""]}
    pq.write_table(pa.table(good), tmp_path / "part-00000.parquet")
    missing = pa.array([None, "二"], pa.string())
    bad = {"id": ["a", "c"], "url": ["", ""], "text": missing}
    pq.write_table(pa.table(bad), tmp_path / "part-00001.parquet")
    rows = raw_table(tmp_path).set_index("file").T.to_dict()
    assert rows["part-00000.parquet"] == {
        "schema": "id: string, url: string, title: string, text: string",
        "documents": 2,
        "null_ids": 0,
        "repeated_ids": 1,
        "null_texts": 0,
        "empty_texts": 1,
    }
    assert rows["part-00001.parquet"]["schema"] == "id: string, url: string, text: string"
    assert rows["part-00001.parquet"]["repeated_ids"] == 1
    assert rows["part-00001.parquet"]["null_texts"] == 1


def test_no_raw_file_gives_no_row(tmp_path: Path) -> None:
    assert len(raw_table(tmp_path)) == 0


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
    rows = shards_table(data.shards).set_index("split")
    row = rows.loc["validation"]
    assert row["sequences"] == 96
    assert row["manifest_sequences_off"] == row["side_rows_off"] == row["files_changed"] == 1
    assert row["largest_id"] == 30_000
    tokens = np.fromfile(path, dtype="<u2")
    assert row["unk_rate"] == pytest.approx((tokens == 100).mean())
    assert rows.loc["train", "files_changed"] == 0


def test_the_recount_equals_a_count_by_hand(random_tokens, write_shards) -> None:
    splits = {
        "train": random_tokens(0, 20),
        "validation": random_tokens(1, 9),
        "test": random_tokens(2, 8),
    }
    splits["train"][11] = splits["train"][15] = splits["validation"][4]
    splits["validation"][8, :16] = splits["test"][7, 10:26]
    table = overlap_table(write_shards(splits), window_tokens=8, max_containment=0.15)
    rows = table.set_index(["pair", "method"])
    shared = {key: row["shared"] for key, row in rows.iterrows() if row["shared"]}
    assert shared == {
        ("train/validation", "exact_sequence"): 2,
        ("train/validation", "near_containment"): 2,
        ("validation/test", "near_containment"): 1,
    }
    example = rows.loc[("train/validation", "exact_sequence"), "example"]
    assert example.startswith("train sequence 11 is in validation sequence 4: ")
    near = rows.loc[("validation/test", "near_containment")]
    assert near["max_containment"] == pytest.approx(9 / 25)
    assert near["example"].startswith("validation sequence 8 is in test sequence 7: ")
    assert rows.loc[("train/test", "exact_sequence"), "compared"] == 20


def test_shared_documents_and_titles_are_counted(random_tokens, write_shards) -> None:
    splits = {
        name: random_tokens(seed, 9) for seed, name in enumerate(("train", "validation", "test"))
    }
    shards = write_shards(splits)
    table = pq.read_table(shards / "train.documents.parquet").to_pydict()
    changed = {**table, "id": ["test-id"], "title": [" Ｔest  TITLE"]}
    pq.write_table(pa.table(changed), shards / "train.documents.parquet")
    rows = overlap_table(shards, window_tokens=8, max_containment=0.15)
    shared = rows[rows["shared"] > 0]
    assert shared[["pair", "method", "example"]].to_numpy().tolist() == [
        ["train/test", "document_id", "'test-id' is in train and in test"],
        ["train/test", "title", "'test title' is in train and in test"],
    ]


def test_an_empty_split_compares_nothing(random_tokens, write_shards) -> None:
    empty = np.empty((0, 32), dtype=np.uint16)
    splits = {"train": random_tokens(0, 9), "validation": empty, "test": random_tokens(1, 9)}
    rows: pd.DataFrame = overlap_table(write_shards(splits), window_tokens=8, max_containment=0.15)
    compared = rows[rows["method"] == "exact_sequence"].set_index("pair")["compared"].to_dict()
    assert compared == {"train/validation": 0, "train/test": 9, "validation/test": 0}


def test_sequences_that_repeat_inside_a_split_are_counted_and_refused(
    data: Workspace, profile
) -> None:
    train = (data.shards / "train-00000.bin").read_bytes()
    for row in range(100, 140):
        plant(data.shards, row, train[:WIDTH])
    seal(data.shards)
    table = shards_table(data.shards).set_index("split")
    assert table["duplicate_rate"]["train"] == pytest.approx(40 / 2106)
    assert table["duplicate_rate"]["test"] == 0.0
    with pytest.raises(GateError, match="duplicate_rate"):
        run(profile, data)


def test_a_split_of_other_characters_is_refused(data: Workspace, profile) -> None:
    latin = np.random.default_rng(0).integers(8000, 9000, (120, WIDTH // 2), dtype=np.uint16)
    latin[:, 0] = 102
    latin.astype("<u2").tofile(data.shards / "test-00000.bin")
    seal(data.shards)
    assert shards_table(data.shards).set_index("split")["drift_bits"]["test"] > 0.9
    with pytest.raises(GateError, match="drift_bits"):
        run(profile, data)


def test_divergence_is_that_of_the_textbook() -> None:
    a, b = np.array([1, 1, 0]), np.array([0, 1, 1])
    assert divergence_bits(a, a) == 0.0
    assert divergence_bits(a, b) == pytest.approx(0.5)
    assert divergence_bits(np.array([1, 0]), np.array([0, 5])) == 1.0
    assert divergence_bits(a, 0 * b) == 1.0


@pytest.mark.parametrize("window", [1, 3, 4, 5, 8, 9])
def test_windows_are_counted_alike_with_and_without_numba(window: int) -> None:
    generator = np.random.default_rng(window)
    reference_ML = generator.integers(0, 3, (4, 12), dtype=np.uint16)
    tokens_NL = generator.integers(0, 3, (50, 12), dtype=np.uint16)
    tokens_NL[0] = reference_ML[2]
    references = [[reference_ML[:1], reference_ML[1:3]], [reference_ML[3:]]]
    plain, compiled, in_parts = (
        known_windows([tokens_NL[:30], tokens_NL[30:]], references, window, **options)
        for options in (
            {"use_numba": False},
            {"use_numba": True},
            {"use_numba": True, "windows_per_table": 5},
        )
    )
    assert compiled.tolist() == plain.tolist() == in_parts.tolist()
    assert plain[0, 0] == 12 - window + 1
    assert window < 4 or not (plain[0] == plain[1]).all()
