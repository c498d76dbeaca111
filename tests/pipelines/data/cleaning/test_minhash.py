"""MinHash: Jaccard by the textbook, and the same numbers with and without numba."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.cleaning.minhash import jaccard, jaccard_of_pairs, minhash_signatures, shingles
from pipelines.data.text.arrays import text_array
from tests.pipelines.data.cleaning.textbook import true_jaccard

HAN = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x4E20), max_size=60)


@given(a=HAN, b=HAN)
def test_jaccard_equals_that_of_python_sets(a: str, b: str) -> None:
    hashed = jaccard(np.unique(shingles(a, 5)), np.unique(shingles(b, 5)))
    assert hashed == pytest.approx(true_jaccard(a, b, 5))


@pytest.mark.parametrize("text", ["", "一", "一二三四"])
def test_a_text_shorter_than_a_shingle_is_one_shingle(text: str) -> None:
    assert len(shingles(text, 5)) == 1
    assert shingles(text, 5) != shingles(text + "五", 5)


def test_signatures_estimate_jaccard(profile, prose) -> None:
    params = profile.clean.near_duplicates
    common = prose(0, 4000)
    a, b = common + prose(1, 1000), common + prose(2, 1000)
    signatures_DH = minhash_signatures(text_array([a, b]), params)
    assert signatures_DH.shape == (2, 128)
    estimate = (signatures_DH[0] == signatures_DH[1]).mean()
    assert estimate == pytest.approx(true_jaccard(a, b, 5), abs=0.12)


@given(texts=st.lists(HAN | st.text(max_size=30), min_size=2, max_size=6))
def test_compiled_or_not_the_numbers_are_the_same(profile, texts: list[str]) -> None:
    params = profile.clean.near_duplicates
    array = text_array(["before", *texts])[1:]
    compiled, plain = (minhash_signatures(array, params, use_numba=flag) for flag in (True, False))
    assert np.array_equal(compiled, plain)
    pairs = np.array([(a, b) for a in range(len(texts)) for b in range(len(texts))])
    compiled, plain = (jaccard_of_pairs(array, pairs, 5, use_numba=flag) for flag in (True, False))
    assert np.array_equal(compiled, plain)
    assert plain[0] == 1.0
