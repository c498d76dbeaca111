"""Equal sequences: found by a key, confirmed in full."""

import numpy as np

from pipelines.data.overlap.exact import HeldSequences


def test_the_first_equal_sequence_is_named(random_tokens) -> None:
    held_ML = random_tokens(0, 5)
    held_ML[4] = held_ML[1]
    train_NL = np.stack([held_ML[1], random_tokens(1, 1)[0], held_ML[3]])
    held = HeldSequences([held_ML[:2], held_ML[2:]], held_ML.__getitem__)
    assert held.matches(train_NL).tolist() == [1, -1, 3]
    without = HeldSequences([held_ML], held_ML.__getitem__, np.array([1, 3]))
    assert without.matches(train_NL).tolist() == [4, -1, -1]


def test_equal_keys_are_not_enough(random_tokens) -> None:
    held_ML = random_tokens(0, 3)
    # The key reads four tokens, and these are others.
    held_ML[1] = held_ML[0]
    held_ML[1, 5] += 1
    train_NL = held_ML[[1, 0]].copy()
    train_NL[1, 7] += 1
    held = HeldSequences([held_ML], held_ML.__getitem__)
    assert held.matches(train_NL).tolist() == [1, -1]


def test_without_held_out_sequences_nothing_matches(random_tokens) -> None:
    empty = np.empty((0, 32), np.uint16)
    assert HeldSequences([], empty.__getitem__).matches(random_tokens(0, 2)).tolist() == [-1, -1]
    held_ML = random_tokens(0, 2)
    assert len(HeldSequences([held_ML], held_ML.__getitem__).matches(empty)) == 0
