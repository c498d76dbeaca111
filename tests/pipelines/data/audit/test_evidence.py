"""Evidence: the tables say what a count by hand says."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.audit.evidence import divergence_bits, raw_table


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


def test_divergence_is_that_of_the_textbook() -> None:
    a, b = np.array([1, 1, 0]), np.array([0, 1, 1])
    assert divergence_bits(a, a) == 0.0
    assert divergence_bits(a, b) == pytest.approx(0.5)
    assert divergence_bits(np.array([1, 0]), np.array([0, 5])) == 1.0
    assert divergence_bits(a, 0 * b) == 1.0
