"""Matches: a worker writes what the reference finds in its shard."""

from pathlib import Path

from pipelines.data.overlap.matches import Lookup, find_shared, read_matches
from pipelines.data.overlap.reference import Match
from pipelines.params import DecontaminateParams


def test_the_matches_of_a_shard_are_written_and_read(
    random_tokens, write_shards, tmp_path: Path
) -> None:
    splits = {
        name: random_tokens(seed, 9) for seed, name in enumerate(("train", "validation", "test"))
    }
    # The second train shard holds sequences 7 and 8.
    splits["train"][8] = splits["test"][3]
    splits["train"][7, :16] = splits["validation"][0, :16]
    shards = write_shards(splits)
    lookup = Lookup(
        path=shards / "train-00001.bin",
        reference=shards,
        splits=("validation", "test"),
        length=32,
        params=DecontaminateParams(window_characters=8, max_containment=0.15),
    )
    find_shared(lookup, tmp_path)
    assert read_matches(tmp_path) == [
        Match(0, "validation", 0, "near", 9 / 25),
        Match(1, "test", 3, "exact", 1.0),
    ]
