"""Splits: a stable hash, except for clusters that are too large to hold out."""

import numpy as np
import pyarrow as pa
import pytest

from pipelines.base.workspace import SPLITS
from pipelines.data.cleaning.splits import split_of, splits_of_clusters
from pipelines.params import SplitParams

PARAMS = SplitParams(validation_fraction=0.1, test_fraction=0.2, seed=7)


def test_the_split_has_the_fractions_asked_for() -> None:
    names = [split_of(f"document {index}", PARAMS) for index in range(20_000)]
    assert names.count("validation") / 20_000 == pytest.approx(0.1, abs=0.01)
    assert names.count("test") / 20_000 == pytest.approx(0.2, abs=0.01)
    other = PARAMS.model_copy(update={"seed": 8})
    assert names != [split_of(f"document {index}", other) for index in range(20_000)]


def splits(documents: list[int], characters: list[int]) -> tuple[list[str], list[bool], list[str]]:
    """The splits of clusters, which were too large, and what their hashes say."""
    names = [f"document {index}" for index in range(len(documents))]
    split_K, too_large_K = splits_of_clusters(
        pa.array(names), np.array(documents), np.array(characters), PARAMS
    )
    hashed = [split_of(name, PARAMS) for name in names]
    return [SPLITS[split] for split in split_K], too_large_K.tolist(), hashed


def test_single_documents_go_where_their_hash_says() -> None:
    for count in (1, 2, 5, 500):
        found, too_large, hashed = splits([1] * count, [100] * count)
        assert found == hashed
        assert not any(too_large)


@pytest.mark.parametrize(("documents", "characters"), [(51, 100), (1, 5_100)])
def test_a_large_cluster_goes_to_train(documents: int, characters: int) -> None:
    """More than 5 % of 1,000 documents or of 100,000 characters: half of validation."""
    for large in range(40):
        sizes, lengths = [1] * 900, [100] * 900
        sizes[large], lengths[large] = documents, characters
        found, too_large, hashed = splits(sizes, lengths)
        # Test may hold 10 %.
        expected = "train" if hashed[large] == "validation" else hashed[large]
        assert found[large] == expected
        assert too_large == [
            index == large and hashed[large] == "validation" for index in range(900)
        ]
        assert found[:large] + found[large + 1 :] == hashed[:large] + hashed[large + 1 :]
