"""The order in which training reads its sequences: a pure function, with nothing to store.

A stream position maps to (epoch, position in the epoch), and a Feistel permutation
keyed by (seed, epoch) maps that to a sequence. The batch of a rank is therefore a function
of (seed, optimiser step, rank, world size), resuming needs one integer, and no rank holds
a list of shuffled indices.

The permutation is a balanced Feistel network (Luby and Rackoff, "How to construct
pseudorandom permutations from pseudorandom functions", 1988) on the smallest power
of 4 that holds all sequences, walked along its cycles until it falls below their
number (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, method
"cycle-walking cipher"). The round function is the finaliser of SplitMix64 (Steele,
Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

Shape legend: B sequences of a batch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

ROUNDS = 6
GOLDEN_GAMMA = 0x9E3779B97F4A7C15

Indices = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class SequenceOrder:
    """A different permutation of the sequences for every epoch.

    Args:
        num_sequences: How many there are, at least 1.
        seed: Two seeds give two unrelated orders.
    """

    num_sequences: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_sequences < 1:
            msg = f"expected at least one sequence, got {self.num_sequences}"
            raise ValueError(msg)

    def sequence_at(self, position_B: Indices) -> Indices:
        """Look up positions of the endless stream.

        Args:
            position_B: (B,) int64, not negative; position p is in epoch
                p // num_sequences.

        Returns:
            (B,) int64, each in [0, num_sequences). Within an epoch each
            sequence occurs exactly once.
        """
        epoch_B, offset_B = np.divmod(position_B, self.num_sequences)
        sequence_B = np.empty_like(position_B)
        for epoch in np.unique(epoch_B):
            mine = epoch_B == epoch
            sequence_B[mine] = self._permute(offset_B[mine], int(epoch))
        return sequence_B

    def _permute(self, offset_B: Indices, epoch: int) -> Indices:
        half_bits = max(1, ((self.num_sequences - 1).bit_length() + 1) // 2)
        keys = _round_keys(self.seed, epoch)
        value_B = _feistel(offset_B.astype(np.uint64), keys, half_bits)
        # The power of 4 is below four times the number of sequences: walks are short.
        while (outside_B := value_B >= self.num_sequences).any():
            value_B[outside_B] = _feistel(value_B[outside_B], keys, half_bits)
        return value_B.astype(np.int64)


@dataclass(frozen=True)
class BatchPlan:
    """The stream positions of a rank at a step; the ranks are disjoint and cover all.

    The positions of an optimiser step are the same for every way to divide the
    same number of sequences over ranks and micro-batches.

    Args:
        order: The order of the sequences.
        batch_size: Sequences of one micro-batch of one rank.
        world_size: Number of ranks.
        gradient_accumulation_steps: Micro-batches of one optimiser step.
    """

    order: SequenceOrder
    batch_size: int
    world_size: int
    gradient_accumulation_steps: int

    @property
    def sequences_per_step(self) -> int:
        """Sequences that all ranks together read in one optimiser step."""
        return self.batch_size * self.world_size * self.gradient_accumulation_steps

    def steps(self, epochs: int) -> int:
        """The fewest optimiser steps that read every sequence at least `epochs` times.

        The last step is filled from the next epoch.
        """
        return -(-epochs * self.order.num_sequences // self.sequences_per_step)

    def epochs_at(self, step: int) -> float:
        """How often each sequence was read, on average, after `step` optimiser steps."""
        return step * self.sequences_per_step / self.order.num_sequences

    def batch(self, step: int, micro_step: int, rank: int) -> Indices:
        """The sequences of one micro-batch.

        Args:
            step: Optimiser step, from 0.
            micro_step: Which micro-batch of the step, from 0.
            rank: Which rank, from 0.

        Returns:
            (batch_size,) int64.
        """
        start = step * self.sequences_per_step
        start += (micro_step * self.world_size + rank) * self.batch_size
        return self.order.sequence_at(np.arange(start, start + self.batch_size, dtype=np.int64))


def evenly_spaced(num_sequences: int, at_most: int) -> Indices:
    """Choose a fixed subset that is spread over the whole split.

    Args:
        num_sequences: How many there are.
        at_most: How many to choose; all, if there are fewer.

    Returns:
        Ascending int64 indices without repeats.
    """
    count = min(num_sequences, at_most)
    return np.arange(count, dtype=np.int64) * num_sequences // max(count, 1)


@lru_cache(maxsize=8)
def _round_keys(seed: int, epoch: int) -> _Words:
    rounds = np.arange(1, ROUNDS + 1, dtype=np.uint64)
    return _mix(_mix(_mix(rounds) ^ np.array(seed, np.uint64)) ^ np.array(epoch, np.uint64))


def _feistel(value_B: _Words, keys: _Words, half_bits: int) -> _Words:
    mask = np.uint64((1 << half_bits) - 1)
    left_B, right_B = value_B >> np.uint64(half_bits), value_B & mask
    for key in keys:
        left_B, right_B = right_B, left_B ^ (_mix(right_B + key) & mask)
    mixed_B: _Words = (left_B << np.uint64(half_bits)) | right_B
    return mixed_B


def _mix(word_B: _Words) -> _Words:
    """The step and finaliser of SplitMix64, element by element, modulo 2^64."""
    word_B = word_B + np.uint64(GOLDEN_GAMMA)
    word_B = (word_B ^ (word_B >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word_B = (word_B ^ (word_B >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word_B ^ (word_B >> np.uint64(31))
