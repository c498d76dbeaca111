"""Ingest: parts of one size, a manifest that counts them, nothing half written."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.base.artifacts import read_manifest, verify_manifest
from pipelines.base.errors import UserError
from pipelines.data.text.documents import RAW_SCHEMA
from pipelines.ingest import ingest
from pipelines.params import IngestParams


def settings(source: Path | str, size: int = 100, limit: int | None = None) -> IngestParams:
    return IngestParams(
        source=str(source),
        on_bad_file="error",
        max_bad_files=0,
        documents_per_file=size,
        max_documents=limit,
    )


@pytest.mark.parametrize("size", [1, 3, 5, 7, 10, 100])
def test_parts_hold_every_document_once_in_order(write_corpus, tmp_path: Path, size: int) -> None:
    texts = ["字" * count for count in range(1, 11)]
    source = write_corpus(texts)
    ingest(settings(source, size), tmp_path / "raw")
    manifest = verify_manifest(tmp_path / "raw")
    assert manifest["rows"] == 10
    assert manifest["characters"] == sum(part["characters"] for part in manifest["parts"]) == 55
    parts = [pq.read_table(tmp_path / "raw" / part["path"]) for part in manifest["parts"]]
    assert all(len(part) == size for part in parts[:-1])
    assert [len(part) for part in parts] == [part["rows"] for part in manifest["parts"]]
    assert pa.concat_tables(parts)["text"].to_pylist() == texts
    assert all(part.schema.equals(RAW_SCHEMA) for part in parts)


@pytest.mark.parametrize(("limit", "rows"), [(1, 1), (4, 4), (10, 10), (11, 10)])
def test_max_documents_takes_the_first(write_corpus, tmp_path: Path, limit: int, rows: int) -> None:
    ingest(settings(write_corpus(["文"] * 10), 3, limit), tmp_path / "raw")
    parts = sorted((tmp_path / "raw").glob("*.parquet"))
    ids = [name for part in parts for name in pq.read_table(part)["id"].to_pylist()]
    assert ids == [f"d{index:04d}" for index in range(rows)]


def test_the_same_source_gives_the_same_bytes(write_corpus, tmp_path: Path) -> None:
    source = write_corpus(["一", "二", "三"])
    ingest(settings(source), tmp_path / "a")
    ingest(settings(source), tmp_path / "b")
    assert read_manifest(tmp_path / "a")["root"] == read_manifest(tmp_path / "b")["root"]


def test_an_empty_corpus_is_refused_and_the_old_output_stays(write_corpus, tmp_path: Path) -> None:
    ingest(settings(write_corpus(["文"])), tmp_path / "raw")
    before = read_manifest(tmp_path / "raw")
    with pytest.raises(UserError, match="expected documents, got no row from"):
        ingest(settings(write_corpus([], name="empty.parquet")), tmp_path / "raw")
    assert read_manifest(tmp_path / "raw") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "corpus.parquet",
        "empty.parquet",
        "raw",
    ]


def test_a_repeated_id_is_refused(write_corpus, tmp_path: Path) -> None:
    write_corpus(["一", "二"], name="a.parquet")
    write_corpus(["三"], name="b.parquet")
    with pytest.raises(UserError, match=r"got 'd0000' 2 times \(1 repeated ids\)"):
        ingest(settings(tmp_path / "*.parquet"), tmp_path / "raw")
