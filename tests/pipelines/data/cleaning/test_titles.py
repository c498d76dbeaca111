"""Titles: passages of one article are joined, unrelated documents of one title are not."""

import numpy as np
import pyarrow as pa
import pytest

from pipelines.data.cleaning import titles
from pipelines.data.cleaning.clusters import Clusters
from pipelines.data.cleaning.titles import (
    MAX_NAMED,
    SHARED_SHINGLES,
    TITLE_IN_BOTH,
    join_titles,
    shared_rare_shingles,
)


class Documents:
    """Keys and titles in memory."""

    def __init__(self, keys: list[str], names: list[str]) -> None:
        self.keys = pa.array(keys, pa.large_string()).take
        self.titles = pa.array(names, pa.large_string()).take


def join(keys: list[str], names: list[str]) -> Clusters:
    """Join documents with keys and titles; an empty title is none."""
    clusters = Clusters(len(keys))
    known = sorted(set(names))
    named = np.array([index for index, name in enumerate(names) if name], np.int64)
    hashes = np.array([known.index(names[index]) for index in named], np.uint64)
    sizes = np.array([len(key) for key in keys], np.int32)
    join_titles(named, hashes, sizes, Documents(keys, names), clusters)
    return clusters


def roots(clusters: Clusters) -> list[int]:
    return clusters.find_all(np.arange(len(clusters))).tolist()


def test_passages_of_one_article_are_joined(prose) -> None:
    """Two terms of the article stand in each of its passages."""
    terms = [[prose(10 * article + term, 6) for term in range(2)] for article in range(3)]
    keys = [
        f"{prose(1000 + 10 * article + passage, 150)}{terms[article][0]}中"
        f"{terms[article][1]}{prose(2000 + 10 * article + passage, 150)}"
        for article in range(3)
        for passage in range(4)
    ]
    clusters = join(keys, [f"title {article}" for article in range(3) for _ in range(4)])
    assert roots(clusters) == [0] * 4 + [4] * 4 + [8] * 4
    assert {links.evidence for links in clusters.links} == {SHARED_SHINGLES}
    # The same passages with no title, or each with its own, are apart.
    assert roots(join(keys, [""] * 12)) == list(range(12))
    assert roots(join(keys, [f"title {index}" for index in range(12)])) == list(range(12))


@pytest.mark.parametrize("count", [2, 8, 300])
def test_unrelated_documents_of_one_title_stay_apart(prose, count: int) -> None:
    keys = [prose(index, 300) for index in range(count)]
    assert roots(join(keys, ["无标题"] * count)) == list(range(count))


def test_what_many_documents_of_a_title_say_is_no_evidence(prose) -> None:
    """A boilerplate, or the title: it says nothing that two of them have in common."""
    common = prose(5000, 12)
    keys = [
        f"{prose(index, 300)}{common}{'无标题' if index % 9 == 0 else ''}" for index in range(100)
    ]
    assert roots(join(keys, ["无标题"] * 100)) == list(range(100))


def test_the_title_in_both_texts_is_evidence_in_a_small_group_only(prose) -> None:
    keys = [f"{prose(index, 200)}曹操{prose(100 + index, 100)}" for index in range(MAX_NAMED + 1)]
    small = join(keys[:MAX_NAMED], ["曹操"] * MAX_NAMED)
    assert set(roots(small)) == {0}
    assert {links.evidence for links in small.links} == {TITLE_IN_BOTH}
    assert roots(join(keys, ["曹操"] * len(keys))) == list(range(MAX_NAMED + 1))
    assert roots(join([*keys[:2], prose(99, 300)], ["曹操"] * 3)) == [0, 0, 2]


def test_long_texts_share_more_by_chance(prose) -> None:
    shared = prose(1, 14)
    short = [f"{prose(2 + i, 200)}{shared}" for i in range(2)]
    long = [f"{prose(2 + i, 4000)}{shared}" for i in range(2)]
    assert roots(join(short, ["题"] * 2)) == [0, 0]
    assert roots(join(long, ["题"] * 2)) == [0, 1]


def test_the_work_in_a_group_is_linear_in_its_documents(prose) -> None:
    """A shingle in many documents makes no pair, however large the group is."""
    keys = [prose(0, 200) + prose(index + 1, 50) for index in range(500)]
    pairs_P2, _ = shared_rare_shingles(
        pa.array(keys, pa.large_string()), np.zeros(500, np.int64), np.full(500, 500)
    )
    assert len(pairs_P2) == 0


def test_blocks_cut_no_small_group(prose, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = [prose(10_000 + group, 40) for group in range(30)]
    keys = [f"{prose(3 * group + i, 100)}{shared[group]}" for i in range(3) for group in range(30)]
    names = [f"title {group}" for _ in range(3) for group in range(30)]
    expected = roots(join(keys, names))
    assert expected == list(range(30)) * 3
    monkeypatch.setattr(titles, "CHARACTERS_PER_BLOCK", 430)
    assert roots(join(keys, names)) == expected


def test_a_huge_group_is_looked_at_in_blocks(prose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(titles, "CHARACTERS_PER_BLOCK", 1000)
    keys = [f"{prose(index // 2, 60)}{prose(1000 + index, 60)}" for index in range(100)]
    found = roots(join(keys, ["题"] * 100))
    assert 30 <= sum(root != index for index, root in enumerate(found)) <= 50


def test_no_document_and_no_title_join_nothing() -> None:
    assert roots(join([], [])) == []
    assert roots(join(["曹操"], ["题"])) == [0]
