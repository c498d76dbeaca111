"""Windows of an earlier split that are held out: where they stand, and which are paired."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.overlap.hits import (
    HIT,
    MAX_HITS,
    PAIR,
    Join,
    Scan,
    join,
    read_group,
    read_hits,
    scan,
    write_groups,
)
from pipelines.data.overlap.stream import stream_parts
from pipelines.data.overlap.window_index import HeldOut, build_index


@given(sizes=st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_groups_are_read_as_they_were_written(tmp_path_factory, sizes: list[int]) -> None:
    directory = tmp_path_factory.mktemp("groups")
    groups = [np.zeros(size, HIT) for size in sizes]
    for number, group in enumerate(groups):
        group["id"] = number
    write_groups(directory, "hits", groups)
    for number, group in enumerate(groups):
        assert np.array_equal(read_group(directory, "hits", HIT, number), group)


def test_hits_say_where_a_window_stands_and_common_ones_are_not_paired(
    random_tokens, write_shards, tmp_path: Path
) -> None:
    """One excerpt stands once in train; a phrase of eight tokens is in every sequence."""
    count = MAX_HITS + 1
    splits = {name: random_tokens(seed, count) for seed, name in enumerate(("train", "validation"))}
    splits["test"] = random_tokens(2, 4)
    splits["train"][:, 24:] = splits["test"][0, :8]
    splits["train"][2, 4:20] = splits["test"][3, 10:26]
    tokens = write_shards(splits)
    held = HeldOut(tokens, {"test": np.empty(0, np.int64)}, 32, 8)
    for name in ("index", "scan", "join"):
        (tmp_path / name).mkdir()
    build_index(held, tmp_path / "index")
    (part,) = stream_parts(tokens, "train", 32)
    scan(Scan(part, tmp_path / "index", tokens, 8), tmp_path / "scan")
    hits = read_hits([tmp_path / "scan"], 0)
    places = sorted(hits[["position", "first", "last"]].tolist())
    excerpt = [(2 * 32 + 4 + at, 2, 2) for at in range(9)]
    phrase = [(32 * row + 24, row, row) for row in range(count)]
    assert places == sorted(excerpt + phrase)
    with np.load(tmp_path / "scan" / "sequences.npz") as scanned:
        assert scanned["windows"].tolist() == [25] * count
        assert scanned["known"].tolist() == [10 if row == 2 else 1 for row in range(count)]
    join(Join(tmp_path / "index", (tmp_path / "scan",), 0), tmp_path / "join")
    pairs = read_group(tmp_path / "join", "pairs", PAIR, 0)
    found = sorted(pairs[["held_position", "position", "first"]].tolist())
    assert found == [(3 * 32 + 10 + at, 2 * 32 + 4 + at, 2) for at in range(9)]
