"""An evaluation set is identified by what it holds, and compares by sequence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.data.shards import ShardReader
from pipelines.flow.evaluation_set import EvaluationSet
from pipelines.flow.hidden_states import Positions
from tests.support import make_tiny_shards


@pytest.fixture
def four_states(workspace: Path) -> EvaluationSet:
    positions = Positions(np.array([1, 0]), np.array([[0, 2], [1, 3]]))
    return EvaluationSet(
        states=torch.zeros(4, 3),
        next_tokens=torch.zeros(4, dtype=torch.int64),
        positions=positions,
        reader=ShardReader(make_tiny_shards(), "test"),
        noise={"noise_std": 0.1, "seed": 0},
    )


def test_the_hash_changes_with_positions_and_noise_and_not_with_states(
    four_states: EvaluationSet,
) -> None:
    positions = four_states.positions
    same = replace(four_states, states=torch.ones(4, 3))
    others = [
        replace(four_states, noise={"noise_std": 0.2, "seed": 0}),
        replace(four_states, positions=replace(positions, sequences=np.array([2, 0]))),
        replace(four_states, positions=replace(positions, offsets=np.array([[0, 2], [1, 4]]))),
    ]
    assert same.sha256 == four_states.sha256
    assert len({four_states.sha256, *(other.sha256 for other in others)}) == 4


def test_losses_are_summed_by_sequence(four_states: EvaluationSet) -> None:
    losses = four_states.losses_of(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.zeros(4))
    assert losses.loss_nats.tolist() == [-3.0, -7.0]
    assert losses.units.tolist() == [6.0, 6.0]
