"""The spline's gradient is written by hand: it must be the gradient."""

import pytest
import torch
from torch import Tensor

from enigma.couplings.spline import num_spline_parameters, spline_forward, spline_inverse

BOUND = 3.0


def values_and_numbers(num_bins: int) -> tuple[Tensor, Tensor]:
    """Values inside and outside of the domain, and numbers that make uneven bins."""
    generator = torch.Generator().manual_seed(0)
    value_ND = 2 * torch.randn(7, 3, generator=generator, dtype=torch.float64)
    shape = (7, num_spline_parameters(num_bins), 3)
    return value_ND, 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("transform", [spline_forward, spline_inverse])
@pytest.mark.parametrize("num_bins", [2, 3, 8])
def test_the_gradient_is_the_gradient(transform, num_bins: int) -> None:
    value_ND, raw_NPD = (t.requires_grad_() for t in values_and_numbers(num_bins))
    assert torch.autograd.gradcheck(
        lambda value, raw: transform(value, raw, num_bins, BOUND), (value_ND, raw_NPD)
    )


@pytest.mark.parametrize("num_bins", [2, 3, 8])
def test_the_inverse_undoes_the_spline(num_bins: int) -> None:
    value_ND, raw_NPD = values_and_numbers(num_bins)
    there_ND, log_slope_ND = spline_forward(value_ND, raw_NPD, num_bins, BOUND)
    back_ND, log_slope_back_ND = spline_inverse(there_ND, raw_NPD, num_bins, BOUND)
    assert torch.allclose(back_ND, value_ND, rtol=0, atol=1e-10)
    assert torch.allclose(log_slope_back_ND, -log_slope_ND, rtol=0, atol=1e-9)
    outside_ND = value_ND.abs() > BOUND
    assert outside_ND.any()
    assert torch.equal(there_ND[outside_ND], value_ND[outside_ND])


def test_zeros_are_the_identity_and_the_map_rises() -> None:
    raw_NPD = torch.zeros(1, num_spline_parameters(8), 1).expand(101, -1, 1)
    line_N1 = torch.linspace(-BOUND, BOUND, 101)[:, None]
    same_N1, log_slope_N1 = spline_forward(line_N1, raw_NPD, 8, BOUND)
    assert torch.allclose(same_N1, line_N1, atol=1e-6)
    assert log_slope_N1.abs().max() < 1e-5
    uneven_NPD = 3 * torch.randn(1, num_spline_parameters(8), 1).expand(101, -1, 1)
    moved_N1, _ = spline_forward(line_N1, uneven_NPD, 8, BOUND)
    assert (moved_N1.diff(dim=0) > 0).all()
