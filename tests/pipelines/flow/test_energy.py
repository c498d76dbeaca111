"""The energy distance of clouds, as a number and as a loss."""

import pytest
import torch

from pipelines.flow.energy import energy_distance
from tests.pipelines.flow.points import points


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_matches_the_definition(dtype: torch.dtype) -> None:
    first_ND = torch.tensor([[0.0], [1.0]], dtype=dtype)
    second_MD = torch.tensor([[2.0], [4.0], [6.0]], dtype=dtype)
    # 2 x 3.5 between, 1 and 8 / 3 within.
    assert energy_distance(first_ND, second_MD).item() == pytest.approx(7 - 1 - 8 / 3)


def test_the_distance_of_equal_distributions_is_zero_on_average() -> None:
    found = [energy_distance(points(seed), points(seed + 100)).item() for seed in range(8)]
    assert min(found) < 0.0 < max(found), "it has no bias"
    assert max(abs(one) for one in found) < 0.02
    assert energy_distance(points(0), points(1, mean=0.5)).item() > 0.2


def test_descending_it_moves_one_cloud_onto_the_other() -> None:
    shift_D = torch.zeros(4, requires_grad=True)
    optimiser = torch.optim.Adam([shift_D], lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        energy_distance(points(0, mean=2.0), points(1) + shift_D).backward()
        optimiser.step()
    assert torch.allclose(shift_D, torch.full((4,), 2.0), atol=0.3)
