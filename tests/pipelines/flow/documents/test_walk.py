"""A walk through the base of a flow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from enigma.jacobian_logdet import EnigmaFlow
from pipelines.flow.documents.walk import slerp, walk_between
from pipelines.flow.gaussian import Gaussian
from pipelines.flow.state_flow import StateFlow


@pytest.fixture(scope="module")
def gaussian_flow() -> StateFlow:
    """A flow that was never trained: a rotation over a Gaussian that is wide along one axis."""
    torch.manual_seed(0)
    wide = torch.diag(torch.tensor([10.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    gaussian = Gaussian(torch.zeros(4, dtype=torch.float64), wide)
    return StateFlow(EnigmaFlow.build(4, 1, coupling="affine", hidden_channels=8).eval(), gaussian)


@given(seed=st.integers(0, 10_000))
def test_a_rotation_keeps_ends_speed_and_length(seed: int) -> None:
    start_D, end_D = torch.randn(
        2, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    path_KD = slerp(start_D, end_D, torch.linspace(0, 1, 5, dtype=torch.float64))
    assert torch.allclose(path_KD[[0, -1]], torch.stack((start_D, end_D)))
    lengths_K = path_KD.norm(dim=1)
    assert torch.allclose(lengths_K.diff(), lengths_K.diff().mean())
    unit_KD = path_KD / lengths_K[:, None]
    cosines = (unit_KD[1:] * unit_KD[:-1]).sum(dim=1)
    assert torch.allclose(cosines, cosines[0].expand(4))


def test_a_rotation_between_equal_directions_is_a_straight_line() -> None:
    path_KD = slerp(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0]), torch.tensor([0.0, 0.5, 1]))
    assert path_KD.tolist() == [[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]


def test_the_path_through_the_base_stays_where_texts_are(gaussian_flow: StateFlow) -> None:
    ends_2D = torch.tensor([[20.0, 2.0, 0.0, 0.0], [-20.0, 0.0, 2.0, 0.0]])
    walk = walk_between(gaussian_flow, ends_2D, steps=5)
    assert torch.allclose(walk.states[[0, -1]], ends_2D, atol=1e-4)
    assert walk.shares.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    nll_K, straight_K = walk.nll_nats_per_dim, walk.straight_nll_nats_per_dim
    assert torch.allclose(nll_K, nll_K[0].expand(5), atol=1e-4), "as typical as its ends"
    assert straight_K[2] < nll_K[2] - 0.3, "the straight line leads through the middle"
