"""The index of all parts: repeats, and clusters across parts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.cleaning.corpus_index import CorpusIndex
from pipelines.data.cleaning.near_duplicates import NEAR_DUPLICATE
from pipelines.data.cleaning.part import Part, clean_part
from pipelines.data.cleaning.titles import SHARED_SHINGLES


@pytest.fixture
def index(write_corpus, prose, profile, tmp_path: Path) -> CorpusIndex:
    """Two parts: ids descend, so that the order of ids is not that of documents."""
    a, b, c, d = (prose(seed, 200) for seed in range(4))
    near = f"{a[:100]}新{a[101:]}"
    d += c[:30]
    parts = []
    for number, texts in enumerate(([a, b, c], [b, near, d])):
        titles = ["", f"title {number}", "Shared" if number == 0 else "ｓｈａｒｅｄ"]
        path = write_corpus(texts, titles=titles, name=f"{number}.parquet")
        table = pq.read_table(path)
        ids = pa.array([f"d{9 - 3 * number - row}" for row in range(3)])
        pq.write_table(table.set_column(0, "id", ids), path)
        parts.append(tmp_path / f"part-{number}")
        parts[-1].mkdir()
        clean_part(Part(path, profile.clean), parts[-1])
    near_duplicates = profile.clean.near_duplicates
    return CorpusIndex(parts, near_duplicates.bands * near_duplicates.rows_per_band)


def test_of_equal_texts_the_smallest_id_stays(index: CorpusIndex) -> None:
    assert index.ids(np.arange(6)).to_pylist() == ["d9", "d8", "d7", "d6", "d5", "d4"]
    assert index.twin_D.tolist() == [0, 3, 2, 3, 4, 5]
    assert [index.bounds(0), index.bounds(1)] == [(0, 3), (3, 6)]


def test_titles_and_near_duplicates_join_documents_across_parts(
    index: CorpusIndex, profile
) -> None:
    kept = np.flatnonzero(index.twin_D == np.arange(6))
    clusters, counts = index.join(kept, profile.clean)
    owners = index.owners(kept, clusters)
    # Near duplicates 0 and 4, one title for 2 and 5, and 3 alone; the smallest id owns.
    assert dict(zip(kept.tolist(), owners.tolist(), strict=True)) == {0: 4, 2: 5, 3: 3, 4: 4, 5: 5}
    assert counts.joined == 1
    near, title = clusters.links
    assert [kept[links.pairs_L2].tolist() for links in (near, title)] == [[[0, 4]], [[2, 5]]]
    assert (near.evidence, title.evidence) == (NEAR_DUPLICATE, SHARED_SHINGLES)
    assert 0.9 < near.strength_L[0] < 1
    assert title.strength_L.tolist() == [28]
