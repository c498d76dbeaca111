"""Measure how often documents of one title are joined, rightly and wrongly.

`python -m benchmarks.data.titles --corpus wiki.parquet` prints: of the joins that would make
the passages of one article one cluster, how many are found (articles in 3 to 5 passages, and
long ones in passages of 400 characters); and of the joins that would make one cluster of
unrelated articles with one title, how many are made, and the largest cluster. The corpus is
parquet with the columns `title` and `text`.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.cleaning.clusters import Clusters
from pipelines.data.cleaning.titles import join_titles
from pipelines.data.text.folding import document_keys, title_key

# The key of a title, and the keys of the documents that have it.
Group = tuple[str, list[str]]
MIN_PASSAGE, PASSAGE, MIN_LONG = 120, 400, 4000
GROUP_SIZES = (4, 8, 30, 100, 500, 2000)


class _Documents:
    def __init__(self, groups: list[Group]) -> None:
        self.keys = pa.array([key for _, keys in groups for key in keys], pa.large_string()).take
        self.titles = pa.array([title for title, keys in groups for _ in keys]).take


def joined(groups: list[Group]) -> tuple[float, int]:
    """Return the share of the possible joins that are made, and the largest cluster."""
    sizes = [len(keys) for _, keys in groups]
    titles = np.repeat(np.arange(len(groups), dtype=np.uint64), sizes)
    characters = np.array([len(key) for _, keys in groups for key in keys], np.int32)
    clusters = Clusters(len(titles))
    join_titles(np.arange(len(titles)), titles, characters, _Documents(groups), clusters)
    sizes_of_clusters = np.bincount(clusters.find_all(np.arange(len(titles))))
    made = len(titles) - np.count_nonzero(sizes_of_clusters)
    return made / (len(titles) - len(groups)), int(sizes_of_clusters.max())


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    table = pq.read_table(parser.parse_args().corpus, columns=["title", "text"])
    titles = [title_key(title) for title in table["title"].to_pylist()]
    keys = document_keys(table["text"].combine_chunks()).to_pylist()
    generator = random.Random(0)
    short, long = [], []
    for title, key in zip(titles, keys, strict=True):
        count = generator.choice([3, 4, 5])
        size = len(key) // count
        if size >= MIN_PASSAGE:
            short.append((title, [key[size * i : size * (i + 1)] for i in range(count)]))
        if len(key) >= MIN_LONG:
            passages = [key[i : i + PASSAGE] for i in range(0, len(key) - PASSAGE // 2, PASSAGE)]
            long.append((title, passages))
    for name, groups in (("3 to 5 passages", short), (f"passages of {PASSAGE} characters", long)):
        print(f"{len(groups)} articles in {name}: {joined(groups)[0]:.3f} of the joins found")
    for size in GROUP_SIZES:
        groups = [("\0", generator.sample(keys, size)) for _ in range(max(1, 2000 // size))]
        share, largest = joined(groups)
        print(f"{size} articles of one title: {share:.3f} joined, the largest cluster {largest}")


if __name__ == "__main__":
    main()
