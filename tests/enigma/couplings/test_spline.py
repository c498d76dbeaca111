"""The spline's gradient is written by hand: it must be the gradient."""

import pytest
import torch
from torch import Tensor

from enigma.couplings.spline import RationalQuadraticSpline

BOUND = 3.0


def values_and_raw(spline: RationalQuadraticSpline) -> tuple[Tensor, Tensor]:
    """Values inside and outside of the domain, and raw parameters that make uneven bins."""
    generator = torch.Generator().manual_seed(0)
    value_ND = 2 * torch.randn(7, 3, generator=generator, dtype=torch.float64)
    shape = (7, spline.num_parameters * 3)
    return value_ND, 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("num_bins", [2, 3, 8])
def test_the_gradient_is_the_gradient(direction: str, num_bins: int) -> None:
    spline = RationalQuadraticSpline(num_bins, BOUND)
    inputs = tuple(t.requires_grad_() for t in values_and_raw(spline))
    assert torch.autograd.gradcheck(getattr(spline, direction), inputs)


@pytest.mark.parametrize("num_bins", [2, 3, 8])
def test_the_inverse_undoes_the_spline(num_bins: int) -> None:
    spline = RationalQuadraticSpline(num_bins, BOUND)
    value_ND, raw_NP = values_and_raw(spline)
    there_ND, log_det_N = spline.forward(value_ND, raw_NP)
    back_ND, log_det_back_N = spline.inverse(there_ND, raw_NP)
    assert torch.allclose(back_ND, value_ND, rtol=0, atol=1e-10)
    assert torch.allclose(log_det_back_N, -log_det_N, rtol=0, atol=1e-9)
    outside_ND = value_ND.abs() > BOUND
    assert outside_ND.any()
    assert torch.equal(there_ND[outside_ND], value_ND[outside_ND])


def test_zeros_are_the_identity_and_the_map_rises() -> None:
    spline = RationalQuadraticSpline(8, BOUND)
    line_N1 = torch.linspace(-BOUND, BOUND, 101)[:, None]
    same_N1, log_det_N = spline.forward(line_N1, torch.zeros(101, spline.num_parameters))
    assert torch.allclose(same_N1, line_N1, atol=1e-6)
    assert log_det_N.abs().max() < 1e-5
    uneven_NP = 3 * torch.randn(1, spline.num_parameters).expand(101, -1)
    moved_N1, _ = spline.forward(line_N1, uneven_NP)
    assert (moved_N1.diff(dim=0) > 0).all()
