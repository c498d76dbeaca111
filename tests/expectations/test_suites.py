"""Every suite accepts good evidence, and refuses bad evidence and an empty table."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from expectations import documents, overlap, raw, shards
from expectations.splits import SPLITS
from pipelines.data.audit.suites import run_suites, suite_sha256

GOOD_RAW = {
    "file": "part-00000.parquet",
    "schema": raw.SCHEMA,
    "documents": 10,
    "files_changed": 0,
    "null_ids": 0,
    "repeated_ids": 0,
    "null_texts": 0,
    "empty_texts": 0,
}
GOOD_DOCUMENTS = {
    "documents": 10,
    "files_changed": 0,
    "null_ids": 0,
    "repeated_ids": 0,
    "null_texts": 0,
    "shortest_characters": 50,
    "clusters": 10,
    "clusters_elsewhere": 0,
    "configured_fraction": 0.3,
    "fraction": 0.3,
    "deviation_sigmas": 0.1,
    "documents_fraction": 0.3,
    "documents_deviation_sigmas": 0.1,
    "characters_fraction": 0.3,
    "characters_deviation_sigmas": 0.1,
}
GOOD_SHARDS = {
    "sequences": 50,
    "sequence_length": 256,
    "manifest_sequences_off": 0,
    "side_rows_off": 0,
    "files_changed": 0,
    "smallest_id": 100,
    "largest_id": 21127,
    "documents_ended": 3,
    "impossible_tokens": 0,
    "miscounted_ids": 0,
    "unk_rate": 0.01,
    "duplicate_rate": 0.0,
    "drift_bits": 0.05,
    "fraction": 0.3,
    "characters_fraction": 0.3,
    "fraction_ratio": 1.0,
}
GOOD_OVERLAP = {
    "compared": 9,
    "shared": 0,
    "max_share": 0.05,
    "p99_share": 0.04,
    "mean_share": 0.01,
    "example": "",
}

TABLES = {
    "raw": [GOOD_RAW, {**GOOD_RAW, "file": "part-00001.parquet"}],
    "documents": [{"split": split, **GOOD_DOCUMENTS} for split in SPLITS],
    "shards": [{"split": split, **GOOD_SHARDS} for split in SPLITS],
    "overlap": [
        {"pair": pair, "method": method, **GOOD_OVERLAP}
        for pair in overlap.PAIRS
        for method in overlap.METHODS
    ],
}


def make(name: str) -> Any:
    if name == "raw":
        return raw.raw_suite()
    if name == "documents":
        return documents.documents_suite(min_characters=50)
    if name == "overlap":
        return overlap.overlap_suite(max_containment=0.15)
    return shards.shards_suite(
        min_sequences={"train": 40, "validation": 5, "test": 5},
        sequence_length=256,
        vocabulary_size=21128,
        max_unk_rate=0.05,
        max_drift_bits=0.15,
    )


def refused_by(name: str, table: pd.DataFrame, directory: Path) -> set[str]:
    """Expectations (and columns) that refuse a table."""
    (result,) = run_suites([make(name)], {name: table}, directory)
    return {
        f"{check.expectation}:{check.arguments.get('column', '')}"
        for check in result.checks
        if check.refuses
    }


@pytest.mark.parametrize("name", TABLES)
def test_good_evidence_passes(name: str, tmp_path: Path) -> None:
    (result,) = run_suites([make(name)], {name: pd.DataFrame(TABLES[name])}, tmp_path)
    assert all(check.success for check in result.checks), result.checks


@pytest.mark.parametrize("name", TABLES)
def test_an_empty_table_is_refused(name: str, tmp_path: Path) -> None:
    columns = pd.DataFrame(TABLES[name]).columns
    refused = refused_by(name, pd.DataFrame(columns=columns), tmp_path)
    assert any("row_count" in item for item in refused)


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_column_is_refused(name: str, tmp_path: Path) -> None:
    table = pd.DataFrame(TABLES[name]).iloc[:, :-1]
    refused = refused_by(name, table, tmp_path)
    assert "expect_table_columns_to_match_ordered_list:" in refused


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_value_is_refused(name: str, tmp_path: Path) -> None:
    table = pd.DataFrame(TABLES[name]).astype(object)
    column = table.columns[2]
    table.loc[1, column] = None
    assert f"expect_column_values_to_not_be_null:{column}" in refused_by(name, table, tmp_path)


BETWEEN = "expect_column_values_to_be_between"
IN_SET = "expect_column_values_to_be_in_set"
DISTINCT = "expect_column_distinct_values_to_equal_set"

# Rows of (row, column, bad value, the expectation that must refuse it); each has a
# column of its own, so that one run shows them all.
BAD = {
    "raw": [
        (0, "schema", "id: int64", IN_SET),
        (1, "file", "part-00000.parquet", "expect_column_values_to_be_unique"),
        (1, "documents", 0, BETWEEN),
        (1, "files_changed", 1, BETWEEN),
        (1, "null_ids", 1, BETWEEN),
        (1, "repeated_ids", 2, BETWEEN),
        (1, "null_texts", 1, BETWEEN),
    ],
    "documents": [
        (2, "split", "dev", DISTINCT),
        (1, "documents", 0, BETWEEN),
        (1, "files_changed", 1, BETWEEN),
        (1, "null_ids", 1, BETWEEN),
        (1, "repeated_ids", 2, BETWEEN),
        (1, "null_texts", 1, BETWEEN),
        (1, "shortest_characters", 49, BETWEEN),
        (1, "clusters_elsewhere", 1, BETWEEN),
        (1, "deviation_sigmas", -5.1, BETWEEN),
        (1, "documents_deviation_sigmas", 5.1, BETWEEN),
        (2, "characters_deviation_sigmas", 5.1, BETWEEN),
    ],
    "shards": [
        (2, "split", "dev", DISTINCT),
        (0, "duplicate_rate", 0.011, BETWEEN),
        (1, "drift_bits", 0.16, BETWEEN),
        (0, "sequences", 39, BETWEEN),
        (1, "sequence_length", 255, IN_SET),
        (1, "manifest_sequences_off", 1, BETWEEN),
        (1, "side_rows_off", 1, BETWEEN),
        (1, "files_changed", 1, BETWEEN),
        (1, "smallest_id", -1, BETWEEN),
        (1, "largest_id", 21128, BETWEEN),
        (1, "impossible_tokens", 1, BETWEEN),
        (0, "miscounted_ids", 1, BETWEEN),
        (1, "documents_ended", 0, BETWEEN),
        (1, "unk_rate", 0.051, BETWEEN),
        (1, "fraction_ratio", 2.1, BETWEEN),
    ],
    "overlap": [
        (0, "pair", "test/test", DISTINCT),
        (1, "method", "colour", DISTINCT),
        (1, "compared", 0, BETWEEN),
        (11, "shared", 1, BETWEEN),
        (1, "max_share", 0.151, BETWEEN),
        (2, "p99_share", 0.151, BETWEEN),
        (3, "mean_share", 0.151, BETWEEN),
    ],
}


@pytest.mark.parametrize("name", BAD)
def test_each_bad_value_is_refused(name: str, tmp_path: Path) -> None:
    table = pd.DataFrame(TABLES[name])
    for row, column, value, _ in BAD[name]:
        table.loc[row, column] = value
    expected = {f"{expectation}:{column}" for _, column, _, expectation in BAD[name]}
    assert refused_by(name, table, tmp_path) == expected


def test_each_split_has_its_own_fewest_sequences(tmp_path: Path) -> None:
    table = pd.DataFrame(TABLES["shards"])
    table["sequences"] = [39, 5, 4]
    (result,) = run_suites([make("shards")], {"shards": table}, tmp_path)
    refused = [check.arguments["row_condition"] for check in result.checks if check.refuses]
    assert sorted(refused) == ["split == test", "split == train"]


def test_a_pair_counted_twice_does_not_stand_in_for_another(tmp_path: Path) -> None:
    table = pd.DataFrame(TABLES["overlap"])
    table.loc[0, "method"] = table.loc[1, "method"]
    refused = refused_by("overlap", table, tmp_path)
    assert refused == {"expect_compound_columns_to_be_unique:"}


@pytest.mark.parametrize(
    ("name", "column", "value"), [("raw", "empty_texts", 3), ("documents", "deviation_sigmas", 4.0)]
)
def test_warnings_do_not_refuse(name: str, column: str, value: float, tmp_path: Path) -> None:
    table = pd.DataFrame(TABLES[name])
    table.loc[0, column] = value
    (result,) = run_suites([make(name)], {name: table}, tmp_path)
    assert sum(not check.success for check in result.checks) == 1
    assert not any(check.refuses for check in result.checks)


def test_the_hash_of_a_suite_is_that_of_its_bounds() -> None:
    same = [suite_sha256(overlap.overlap_suite(max_containment=0.15)) for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != suite_sha256(overlap.overlap_suite(max_containment=0.2))
