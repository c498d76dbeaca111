"""Near duplicates: copies are found, and no false pair is joined."""

import random

from benchmarks.data.in_memory import join_texts
from pipelines.data.cleaning.clusters import Clusters
from pipelines.data.cleaning.near_duplicates import MAX_FAILURES, NEIGHBOURS
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
    sets = Clusters(len(texts))
    join_texts(text_array(texts), params, sets)
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
    sets = Clusters(len(texts))
    counts = join_texts(text_array(texts), profile.clean.near_duplicates, sets)
    assert counts.joined == 399
    assert {sets.find(index) for index in range(400)} == {0}


def stubs(prose, count: int) -> list[str]:
    """Texts of one template whose similarity, 0.49, is just below the bound."""
    return [prose(0, 330) + prose(1 + index, 170) for index in range(count)]


def test_stubs_just_below_the_bound_take_linear_work(profile, prose) -> None:
    params = profile.clean.near_duplicates
    texts = stubs(prose, 1600)
    assert 0.48 < true_jaccard(texts[0], texts[1], 5) < params.min_jaccard
    work = []
    for count in (400, 1600):
        counts = join_texts(text_array(texts[:count]), params, Clusters(count))
        assert counts.joined == 0
        assert 0 < counts.verified <= MAX_FAILURES * count
        assert counts.compared <= NEIGHBOURS * params.bands * count
        work.append(counts)
    assert work[1].compared < 5 * work[0].compared


def test_copies_among_stubs_are_found_all_the_same(profile, prose) -> None:
    generator = random.Random(0)
    originals = stubs(prose, 1000)
    copies = [edited(text, 0.02, generator) for text in originals[:100]]
    order = generator.sample(range(1100), 1100)
    texts = [originals[i] if i < 1000 else copies[i - 1000] for i in order]
    sets = Clusters(len(texts))
    join_texts(text_array(texts), profile.clean.near_duplicates, sets)
    place = {number: position for position, number in enumerate(order)}
    found = sum(sets.find(place[i]) == sets.find(place[1000 + i]) for i in range(100))
    assert found >= 99
    assert len({sets.find(place[i]) for i in range(1000)}) == 1000


def test_links_connect_every_cluster_and_no_more(profile, prose) -> None:
    texts = [f"{prose(index // 3, 400)}{index}" for index in range(30)]
    sets = Clusters(len(texts))
    counts = join_texts(text_array(texts), profile.clean.near_duplicates, sets)
    pairs = [pair for links in sets.links for pair in links.pairs_L2.tolist()]
    assert len(pairs) == counts.joined == 20
    assert all(sets.find(a) == sets.find(b) == 3 * (a // 3) for a, b in pairs)


def test_no_text_and_one_text_join_nothing(profile) -> None:
    for texts in ([], ["曹操起兵"]):
        sets = Clusters(len(texts))
        counts = join_texts(text_array(texts), profile.clean.near_duplicates, sets)
        assert counts.compared == counts.joined == 0


def test_a_bucket_of_several_sets_is_compared_in_full(profile, prose) -> None:
    """Three families share a long passage: one bucket, three sets, no pair lost."""
    passage = prose(0, 260)
    families = [passage + prose(seed, 400) for seed in (1, 2, 3)]
    texts = [f"{family}{index}" for index in range(5) for family in families]
    sets = Clusters(len(texts))
    join_texts(text_array(texts), profile.clean.near_duplicates, sets)
    assert [sets.find(index) for index in range(15)] == [0, 1, 2] * 5
