"""Near duplicates: copies are found, and no false pair is joined."""

import random

from pipelines.data.cleaning.near_duplicates import UnionFind, join_near_duplicates
from pipelines.data.text.arrays import text_array
from tests.pipelines.data.cleaning.textbook import true_jaccard


def edited(text: str, share: float, generator: random.Random) -> str:
    """Replace a share of the characters."""
    characters = list(text)
    for index in generator.sample(range(len(text)), round(share * len(text))):
        characters[index] = chr(generator.randrange(0x4E00, 0x9F00))
    return "".join(characters)


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


def test_a_bucket_of_several_sets_is_compared_in_full(profile, prose) -> None:
    """Three families share a long passage: one bucket, three sets, no pair lost."""
    passage = prose(0, 260)
    families = [passage + prose(seed, 400) for seed in (1, 2, 3)]
    texts = [f"{family}{index}" for index in range(5) for family in families]
    sets = UnionFind(len(texts))
    join_near_duplicates(text_array(texts), profile.clean.near_duplicates, sets)
    assert [sets.find(index) for index in range(15)] == [0, 1, 2] * 5
