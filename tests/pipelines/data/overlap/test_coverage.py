"""What an earlier split has of held-out text, counted by hand, and uncovered down to the bound."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.overlap.coverage import Coverage, _uncover
from pipelines.data.overlap.hits import HIT, Scan, scan
from pipelines.data.overlap.stream import stream_parts
from pipelines.data.overlap.window_index import HeldOut, WindowIndex, build_index

WINDOWS, SEQUENCES = 6, 5


@given(
    hits=st.lists(
        st.tuples(st.integers(0, WINDOWS - 1), st.integers(0, SEQUENCES - 1), st.booleans()),
        max_size=30,
    ),
    weights=st.lists(st.integers(1, 3), min_size=WINDOWS, max_size=WINDOWS),
    allowed=st.integers(0, 6),
)
def test_a_unit_is_uncovered_to_what_is_allowed_and_not_without_need(
    hits: list[tuple[int, int, bool]], weights: list[int], allowed: int
) -> None:
    """A hit lies in a sequence, or in it and the next one."""
    hits_H = np.zeros(len(hits), HIT)
    hits_H["first"] = [first for _, first, _ in hits]
    hits_H["last"] = [first + crosses for _, first, crosses in hits]
    owners_H = np.array([owner for owner, _, _ in hits], np.int64)
    kept_N = np.ones(SEQUENCES + 1, np.bool_)

    def covered() -> int:
        alive = kept_N[hits_H["first"]] & kept_N[hits_H["last"]]
        return sum(weights[owner] for owner in set(owners_H[alive].tolist()))

    before = covered()
    removed = _uncover(hits_H, owners_H, np.array(weights), allowed, kept_N)
    assert covered() <= allowed
    assert sorted(removed) == np.flatnonzero(~kept_N).tolist()
    assert bool(len(removed)) == (before > allowed)


def test_the_shares_of_documents_and_sequences_are_measured(
    random_tokens, write_shards, tmp_path: Path
) -> None:
    """Train has 20 tokens, 13 windows, of the second test sequence."""
    splits = {name: random_tokens(seed, 4) for seed, name in enumerate(("train", "validation"))}
    splits["test"] = random_tokens(2, 4)
    splits["train"][3, 5:25] = splits["test"][1, 5:25]
    tokens = write_shards(splits)
    held = HeldOut(tokens, {"test": np.empty(0, np.int64)}, 32, 8)
    for name in ("index", "scan"):
        (tmp_path / name).mkdir()
    build_index(held, tmp_path / "index")
    (part,) = stream_parts(tokens, "train", 32)
    scan(Scan(part, tmp_path / "index", tokens, 8), tmp_path / "scan")
    coverage = Coverage(WindowIndex(tmp_path / "index"), [tmp_path / "scan"], 0.15)
    covered_U, hits_U = coverage.measure(np.ones(4, np.bool_))
    assert coverage.windows.tolist() == [121, 25, 25, 25, 25]
    assert covered_U.tolist() == hits_U.tolist() == [13, 0, 13, 0, 0]
    # 13 of 25 are above the bound, 13 of 121 are not.
    assert coverage.above(covered_U).tolist() == [2]
    without = np.array([True, True, True, False])
    assert not coverage.measure(without)[0].any()
    kept_N = np.ones(4, np.bool_)
    ((gone, document, share),) = coverage.uncover(kept_N, covered_U, hits_U)
    assert (gone.tolist(), document, share) == ([3], 0, 13 / 25)
    assert kept_N.tolist() == without.tolist()
