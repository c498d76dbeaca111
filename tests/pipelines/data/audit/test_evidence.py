"""Evidence: the tables say what a count by hand says."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.base.artifacts import read_manifest, sha256_file, write_json, write_manifest
from pipelines.data.audit.evidence import divergence_bits, raw_table


def test_raw_evidence_counts_what_is_wrong(tmp_path: Path) -> None:
    good = {"id": ["a", "b"], "url": ["", ""], "title": ["", ""], "text": ["一", ""]}
    pq.write_table(pa.table(good), tmp_path / "part-00000.parquet")
    missing = pa.array([None, "二"], pa.string())
    bad = {"id": ["a", "c"], "url": ["", ""], "text": missing}
    pq.write_table(pa.table(bad), tmp_path / "part-00001.parquet")
    write_manifest(tmp_path, stage="ingest", facts={})
    rows = raw_table(tmp_path).set_index("file").T.to_dict()
    assert rows["part-00000.parquet"] == {
        "schema": "id: string, url: string, title: string, text: string",
        "documents": 2,
        "files_changed": 0,
        "null_ids": 0,
        "repeated_ids": 1,
        "null_texts": 0,
        "empty_texts": 1,
    }
    assert rows["part-00001.parquet"]["schema"] == "id: string, url: string, text: string"
    assert rows["part-00001.parquet"]["repeated_ids"] == 1
    assert rows["part-00001.parquet"]["null_texts"] == 1


def test_no_raw_file_gives_no_row(tmp_path: Path) -> None:
    write_manifest(tmp_path, stage="ingest", facts={})
    assert len(raw_table(tmp_path)) == 0


@pytest.mark.parametrize("change", ["edit", "remove", "add", "forge the root", "forge an entry"])
def test_every_change_since_the_manifest_counts_once_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    path = tmp_path / "part-00000.parquet"
    pq.write_table(pa.table({"id": ["a"], "url": [""], "title": [""], "text": ["一"]}), path)
    other = tmp_path / "sub" / "other"
    other.parent.mkdir()
    other.write_text("一")
    write_manifest(tmp_path, stage="ingest", facts={})
    assert raw_table(tmp_path)["files_changed"].tolist() == [0]
    assert not caplog.records
    manifest = read_manifest(tmp_path)
    if change == "edit":
        other.write_text("二")
    elif change == "remove":
        other.unlink()
    elif change == "add":
        (tmp_path / "sub" / "new").touch()
    elif change == "forge the root":
        manifest["root"] = "0" * 64
    else:
        # With the new hash in the manifest, its root is still that of the old file.
        other.write_text("二")
        manifest["files"][1]["sha256"] = sha256_file(other)
    write_json(tmp_path / "manifest.json", manifest)
    assert raw_table(tmp_path)["files_changed"].tolist() == [1]
    named = {"add": "sub/new", "edit": "sub/other", "remove": "sub/other"}
    assert named.get(change, "manifest.json") in caplog.text


def test_divergence_is_that_of_the_textbook() -> None:
    a, b = np.array([1, 1, 0]), np.array([0, 1, 1])
    assert divergence_bits(a, a) == 0.0
    assert divergence_bits(a, b) == pytest.approx(0.5)
    assert divergence_bits(np.array([1, 0]), np.array([0, 5])) == 1.0
    assert divergence_bits(a, 0 * b) == 1.0
