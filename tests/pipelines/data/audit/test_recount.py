"""The recount: what splits share is what a count by hand says, with and without numba."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.audit.recount import known_windows, overlap_table


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
