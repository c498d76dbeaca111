"""Strings as arrays: any Arrow form gives the same bytes and offsets."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from pipelines.data.text.arrays import hash_keys, text_array, utf8_views

TEXTS = ["曹操", "", "e\u0301"]


@pytest.mark.parametrize(
    "texts",
    [
        TEXTS,
        pa.array(TEXTS, pa.string()),
        pa.array(["before", *TEXTS, "after"]).slice(1, 3),
        pa.chunked_array([pa.array(TEXTS[:1]), pa.array(TEXTS[1:])]),
    ],
    ids=["list", "array", "slice", "chunks"],
)
def test_every_form_of_strings_has_the_same_views(texts) -> None:
    data, offsets = utf8_views(text_array(texts))
    found = [data[start:stop].tobytes().decode() for start, stop in pairwise(offsets)]
    assert found == TEXTS
    assert offsets.dtype == np.int64
    assert not data.flags.writeable
    assert not offsets.flags.writeable


@pytest.mark.parametrize("texts", [[], pa.chunked_array([], pa.string())])
def test_no_string_has_one_offset(texts) -> None:
    _, offsets = utf8_views(text_array(texts))
    assert offsets.tolist() == [0]


def test_equal_strings_have_equal_keys_and_null_is_empty() -> None:
    keys = hash_keys(pa.array(["a", None, "", "a", "b"]))
    assert keys.dtype == np.uint64
    assert keys[0] == keys[3] != keys[4]
    assert keys[1] == keys[2]
