"""The index of windows on disk: every held-out window is found, with all of its places."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.overlap.window_index import (
    NO_SEQUENCE,
    HeldOut,
    WindowIndex,
    build_index,
    stable_order,
)
from pipelines.data.overlap.windows import token_folder
from pipelines.data.text.vocabulary import vocabulary_tokens

VOCABULARY = vocabulary_tokens("bert-base-chinese")


def held_out(shards: Path, removed: dict[str, list[int]], windows_per_block: int) -> HeldOut:
    arrays = {split: np.array(gone, np.int64) for split, gone in removed.items()}
    return HeldOut(shards, arrays, 32, 8, windows_per_block)


def windows_of(tokens: np.ndarray) -> np.ndarray:
    flat = tokens.reshape(-1)
    return token_folder(VOCABULARY).windows(flat, np.array([0, len(flat)]), 8).hashes_W


@pytest.mark.parametrize("windows_per_block", [50, 1000])
def test_every_place_of_a_window_is_found(
    random_tokens, write_shards, tmp_path: Path, windows_per_block: int
) -> None:
    splits = {name: random_tokens(seed, 6) for seed, name in enumerate(("train", "validation"))}
    splits["test"] = random_tokens(2, 6)
    splits["test"][3, 5:25] = splits["validation"][1, 5:25]
    shards = write_shards(splits)
    (tmp_path / "index").mkdir()
    held = held_out(shards, {"validation": [], "test": []}, windows_per_block)
    build_index(held, tmp_path / "index")
    index = WindowIndex(tmp_path / "index")
    assert index.num_blocks == (8 if windows_per_block == 50 else 1)
    assert index.documents.tolist() == [185, 185]
    assert index.sequences.tolist() == [25] * 12
    hashes = windows_of(splits["validation"][1])
    assert np.array_equal(index.passing(hashes), np.arange(25))
    assert np.array_equal(index.passing(hashes, use_numba=False), np.arange(25))
    places = set()
    for block, (rows, ids) in enumerate(index.look_up(hashes)):
        row, found = index.expand(block, ids)
        places |= {
            (int(rows[number]), *place) for number, place in zip(row, found.tolist(), strict=True)
        }
    own = {(at, 0, 32 + at, 1) for at in range(25)}
    copied = {(at, 1, 96 + at, 6 + 3) for at in range(5, 18)}
    assert places == own | copied
    strange = windows_of(random_tokens(9, 20))
    assert not any(len(rows) for rows, _ in index.look_up(strange))


def test_removed_sequences_are_held_out_no_longer(
    random_tokens, write_shards, tmp_path: Path
) -> None:
    splits = {
        name: random_tokens(seed, 4) for seed, name in enumerate(("train", "validation", "test"))
    }
    (tmp_path / "index").mkdir()
    held = held_out(write_shards(splits), {"validation": [1], "test": []}, 1000)
    build_index(held, tmp_path / "index")
    index = WindowIndex(tmp_path / "index")
    # A document in two pieces: one sequence, and two together.
    assert index.documents.tolist() == [25 + 57, 121]
    assert index.sequences.tolist() == [25, 0, 25, 25, 25, 25, 25, 25]
    assert np.count_nonzero(index.places(0)["sequence"] == NO_SEQUENCE) == 7 + 21
    assert held.removed_sequences().tolist() == [1]
    assert not any(len(rows) for rows, _ in index.look_up(windows_of(splits["validation"][1])))


@given(hashes=st.lists(st.integers(0, 3), max_size=40))
def test_equal_hashes_keep_their_order(hashes: list[int]) -> None:
    hashes_W = np.array(hashes, np.uint64)
    assert stable_order(hashes_W).tolist() == np.argsort(hashes_W, kind="stable").tolist()
