"""Near duplicates: Jaccard by the textbook, recall where it matters, no false pair."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.cleaning.minhash import jaccard, jaccard_of_pairs, minhash_signatures, shingles
from pipelines.data.cleaning.near_duplicates import UnionFind, join_near_duplicates
from pipelines.data.text.arrays import text_array

HAN = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x4E20), max_size=60)


def true_jaccard(a: str, b: str, length: int) -> float:
    """By Python sets of the shingles themselves."""
    sets = [
        {text[i : i + length] for i in range(max(1, len(text) - length + 1))} for text in (a, b)
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def edited(text: str, share: float, generator: random.Random) -> str:
    """Replace a share of the characters."""
    characters = list(text)
    for index in generator.sample(range(len(text)), round(share * len(text))):
        characters[index] = chr(generator.randrange(0x4E00, 0x9F00))
    return "".join(characters)


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


def test_copies_with_a_twentieth_edited_are_found_and_others_left_alone(profile, prose) -> None:
    params = profile.clean.near_duplicates
    generator = random.Random(0)
    originals = [prose(seed, 500) for seed in range(150)]
    copies = [edited(text, 0.05, generator) for text in originals]
    half_new = [text[:250] + prose(1000 + i, 250) for i, text in enumerate(originals)]
    texts = [*originals, *copies, *half_new]
    sets = UnionFind(len(texts))
    join_near_duplicates(text_array(texts), params, sets)
    expected = found = 0
    for index in range(150):
        alike = true_jaccard(originals[index], copies[index], 5) >= params.min_jaccard
        joined = sets.find(index) == sets.find(150 + index)
        assert alike or not joined
        expected += alike
        found += joined
        assert sets.find(300 + index) == 300 + index
    assert expected >= 148
    assert found >= 0.99 * expected


def test_a_big_bucket_of_one_template_becomes_one_set(profile, prose) -> None:
    template = prose(0, 600)
    texts = [f"{template}{index:04d}" for index in range(400)]
    sets = UnionFind(len(texts))
    joined = join_near_duplicates(text_array(texts), profile.clean.near_duplicates, sets)
    assert joined == 399
    assert {sets.find(index) for index in range(400)} == {0}


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


def test_a_bucket_of_several_sets_is_compared_in_full(profile, prose) -> None:
    """Three families share a long passage: one bucket, three sets, no pair lost."""
    passage = prose(0, 260)
    families = [passage + prose(seed, 400) for seed in (1, 2, 3)]
    texts = [f"{family}{index}" for index in range(5) for family in families]
    sets = UnionFind(len(texts))
    join_near_duplicates(text_array(texts), profile.clean.near_duplicates, sets)
    assert [sets.find(index) for index in range(15)] == [0, 1, 2] * 5
