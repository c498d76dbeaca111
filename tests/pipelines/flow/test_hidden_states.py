"""Hidden states are read at the positions that the seed determines."""

import numpy as np
import pytest
import torch

from pipelines.base.artifacts import write_manifest
from pipelines.base.errors import UserError
from pipelines.data.shards import ShardReader, ShardWriter
from pipelines.flow.hidden_states import choose_positions, states_at, with_noise

LENGTH = 16


def encode(ids_BL: torch.Tensor) -> torch.Tensor:
    """A causal encoder that can be checked by hand: the token, and the sum up to it."""
    return torch.stack([ids_BL, ids_BL.cumsum(dim=1)], dim=-1).float()


@pytest.fixture
def reader(tmp_path) -> ShardReader:
    tokens = np.random.default_rng(0).integers(0, 21128, (40, LENGTH)).astype(np.uint16)
    writer = ShardWriter(tmp_path, "train", sequence_length=LENGTH, sequences_per_shard=16)
    writer.append(tokens)
    facts = {"sequence_length": LENGTH, "sequences": {"train": 40}}
    write_manifest(tmp_path, stage="decontaminate", facts=facts)
    return ShardReader(tmp_path, "train")


def choose(seed: int = 0, states: int = 60, num_sequences: int = 40):
    return choose_positions(
        seed=seed,
        num_sequences=num_sequences,
        sequence_length=LENGTH,
        states=states,
        states_per_sequence=4,
    )


def test_states_are_those_of_the_chosen_positions_with_their_next_tokens(reader):
    positions = choose()
    got = states_at(encode, reader, positions, batch_size=4, device=torch.device("cpu"))
    assert got.states.shape == (60, 2)
    assert got.states.dtype == torch.float32
    tokens = reader.gather(positions.sequences).astype(np.int64)
    for n in range(60):
        row, column = divmod(n, 4)
        offset = positions.offsets[row, column]
        assert got.states[n, 0] == tokens[row, offset]
        assert got.states[n, 1] == tokens[row, : offset + 1].sum()
        assert got.next_tokens[n] == tokens[row, offset + 1]


def test_the_batch_size_changes_nothing(reader):
    first, second = (
        states_at(encode, reader, choose(), batch_size=size, device=torch.device("cpu"))
        for size in (1, 7)
    )
    assert torch.equal(first.states, second.states)
    assert torch.equal(first.next_tokens, second.next_tokens)


def test_the_choice_is_a_pure_function_of_the_seed():
    first, again, other = choose(seed=1), choose(seed=1), choose(seed=2)
    assert np.array_equal(first.sequences, again.sequences)
    assert np.array_equal(first.offsets, again.offsets)
    assert not np.array_equal(first.offsets, other.offsets)


def test_no_position_twice_and_none_without_a_next_token():
    positions = choose()
    assert len(np.unique(positions.sequences)) == 15
    assert (np.diff(positions.offsets, axis=1) > 0).all()
    assert positions.offsets.max() < LENGTH - 1


@pytest.mark.parametrize(("num_sequences", "expected"), [(10, (10, 6)), (3, (3, LENGTH - 1))])
def test_a_small_split_gives_more_of_each_sequence_and_then_fewer_states(num_sequences, expected):
    assert choose(num_sequences=num_sequences).offsets.shape == expected


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="got an empty split"):
        choose(num_sequences=0)


def test_noise_is_a_function_of_seed_and_split():
    zeros_ND = torch.zeros(1000, 4)
    first = with_noise(zeros_ND, noise_std=0.3, split="test", seed=0)
    assert torch.equal(first, with_noise(zeros_ND, noise_std=0.3, split="test", seed=0))
    assert first.std() == pytest.approx(0.3, rel=0.05)
    for split, seed in (("validation", 0), ("test", 1)):
        other = with_noise(zeros_ND, noise_std=0.3, split=split, seed=seed)
        assert abs(float((first * other).mean())) < 0.01
