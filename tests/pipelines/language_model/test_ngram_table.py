"""The pruned table is a trie of the most frequent n-grams, with the sums of all of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from pipelines.base.errors import UserError
from pipelines.language_model.counting import bucketed, count, windows
from pipelines.language_model.ngram_table import NGramTable, kneser_ney, make_table
from tests.pipelines.language_model.test_counting import NUM_CLASSES, ORDER, Gram, spelled, text

EVERYTHING = 10**9


def table_of(
    classes_NL: np.ndarray, max_entries: int, directory: Path, positions_per_bucket: int = 40
) -> NGramTable:
    num_by_class = np.bincount(classes_NL.ravel(), minlength=NUM_CLASSES)
    with bucketed(
        [classes_NL], np.arange(NUM_CLASSES, dtype=np.uint16), num_by_class, ORDER,
        near=directory / "table", positions_per_bucket=positions_per_bucket,
    ) as buckets:  # fmt: skip
        return make_table(buckets, max_entries)


def grams_of(table: NGramTable) -> list[list[Gram]]:
    grams: list[list[Gram]] = [[()]]
    for k in range(1, table.order + 1):
        keys = table.tensors[f"keys_{k}"]
        assert (np.diff(keys) > 0).all()
        grams.append([(*grams[-1][key >> 16], key & 0xFFFF) for key in keys.tolist()])
    return grams


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), share=st.floats(0.2, 1.2))
def test_a_pruned_table_is_what_its_thresholds_say(
    tmp_path_factory: pytest.TempPathFactory, seed: int, share: float
) -> None:
    classes_NL = text(seed, sequences=12, length=10)
    counted = count(windows(classes_NL, ORDER))
    all_grams = spelled(counted)
    max_entries = max(NUM_CLASSES + NUM_CLASSES**2, int(share * sum(map(len, all_grams))))
    table = table_of(classes_NL, max_entries, tmp_path_factory.mktemp("table"))
    assert table.num_entries <= max_entries
    grams = grams_of(table)
    kept = {gram for of_order in grams[1:] for gram in of_order}
    prefixes = {gram[:-1] for gram in kept} | {()}
    for k, counts in enumerate(kneser_ney(counted), start=1):
        of_gram = dict(zip(all_grams[k - 1], counts.tolist(), strict=True))
        for gram, n in of_gram.items():
            assert (gram in kept) == (n >= table.thresholds[k - 1] or gram in prefixes), gram
        assert table.tensors[f"counts_{k}"].tolist() == [of_gram[gram] for gram in grams[k]]
        for row, prefix in enumerate(grams[k - 1]):
            follow = [n for gram, n in of_gram.items() if gram[:-1] == prefix]
            assert table.tensors[f"totals_{k}"][row] == sum(follow)


def test_the_table_does_not_depend_on_the_buckets(tmp_path: Path) -> None:
    classes_NL = text(3, sequences=30, length=10)
    one, many = (table_of(classes_NL, 400, tmp_path, size) for size in (10**6, 10))
    assert one.thresholds == many.thresholds != [1] * ORDER
    for name, tensor in one.tensors.items():
        assert np.array_equal(tensor, many.tensors[name]), name
        assert tensor.dtype == many.tensors[name].dtype


def test_pruning_goes_no_further_than_it_must(tmp_path: Path) -> None:
    classes_NL = text(4, sequences=30, length=10)
    whole = table_of(classes_NL, EVERYTHING, tmp_path)
    assert whole.thresholds == [1] * ORDER
    assert table_of(classes_NL, whole.num_entries, tmp_path).thresholds == [1] * ORDER
    assert table_of(classes_NL, whole.num_entries - 1, tmp_path).thresholds == [1, 1, 1, 1, 2]


def test_a_size_below_the_bigrams_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected at most 5 n-grams .* got 4\d"):
        table_of(text(5, sequences=30), 5, tmp_path)


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    table = table_of(text(6), EVERYTHING, tmp_path)
    table.write(tmp_path / "ngrams.safetensors", {"shards_root": "abc", "num_classes": 7})
    with safe_open(tmp_path / "ngrams.safetensors", "numpy") as file:
        metadata = json.loads(file.metadata()["ngrams"])
        dtypes = [file.get_tensor(name).dtype for name in ("keys_5", "counts_5", "totals_2")]
    assert dtypes == [np.int64, np.int32, np.int64]
    assert metadata == {
        "shards_root": "abc", "num_classes": 7, "order": 5, "thresholds": [1] * 5,
        "counted": table.num_counted, "entries": table.num_entries,
    }  # fmt: skip
