"""The spline's gradient is written by hand: it must be the gradient, and have one itself."""

from typing import Any

import pytest
import torch
from torch import Tensor

from enigma.bijections.machine import Enigma
from enigma.couplings.channel_splines import ChannelSplines
from enigma.couplings.settings import CouplingKind
from enigma.couplings.spline import RationalQuadraticSpline
from enigma.jacobian_logdet import EnigmaFlow
from enigma.rev_block import RevBlock

BOUND = 3.0


def values_and_raw(spline: RationalQuadraticSpline) -> tuple[Tensor, Tensor]:
    """Values inside and outside of the domain, and raw parameters that make uneven bins."""
    generator = torch.Generator().manual_seed(0)
    value_ND = 2 * torch.randn(7, 3, generator=generator, dtype=torch.float64)
    shape = (7, spline.num_parameters * 3)
    return value_ND, 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


# Forward-mode differentiation itself uses it.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("num_bins", [2, 3, 8])
def test_the_gradient_is_the_gradient(direction: str, num_bins: int) -> None:
    spline = RationalQuadraticSpline(num_bins, BOUND)
    inputs = tuple(t.requires_grad_() for t in values_and_raw(spline))
    assert torch.autograd.gradcheck(getattr(spline, direction), inputs, check_forward_ad=True)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("num_bins", [2, 4])
def test_the_gradient_of_the_gradient_is_right(direction: str, num_bins: int) -> None:
    spline = RationalQuadraticSpline(num_bins, BOUND)
    inputs = tuple(t[:4].requires_grad_() for t in values_and_raw(spline))
    assert (inputs[0].abs() > BOUND).any()
    assert torch.autograd.gradgradcheck(getattr(spline, direction), inputs)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("fixed", [0, 1])
def test_the_gradient_of_the_gradient_by_one_input_alone(direction: str, fixed: int) -> None:
    spline = RationalQuadraticSpline(3, BOUND)
    value_and_raw = [t[:4] for t in values_and_raw(spline)]

    def bent(free: Tensor) -> tuple[Tensor, Tensor]:
        value_and_raw[1 - fixed] = free
        return getattr(spline, direction)(*value_and_raw)

    free = value_and_raw[1 - fixed].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(bent, free)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_fused_and_composed_are_the_same_map(direction: str) -> None:
    """Transforms of `torch.func` take the composed spline, ordinary autograd the fused one."""
    spline = RationalQuadraticSpline(5, BOUND)
    value_ND, raw_NP = values_and_raw(spline)
    bent = getattr(spline, direction)
    fused = bent(value_ND, raw_NP)
    for one, other in zip(torch.vmap(bent)(value_ND, raw_NP), fused, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    grads = torch.func.grad(lambda *inputs: sum(y.sin().sum() for y in bent(*inputs)), (0, 1))
    inputs = [t.requires_grad_() for t in (value_ND, raw_NP)]
    expected = torch.autograd.grad(sum(y.sin().sum() for y in bent(*inputs)), inputs)
    for one, other in zip(grads(value_ND, raw_NP), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    # A batch of gradients at once, as `vectorize=True` takes them.
    one, _ = bent(value_ND, raw_NP)
    directions = torch.eye(7, dtype=torch.float64)[:2, :, None].expand(-1, -1, 3)
    both = torch.autograd.grad(one, inputs, directions, is_grads_batched=True, retain_graph=True)
    for batched, single in zip(both, torch.autograd.grad(one, inputs, directions[1]), strict=True):
        torch.testing.assert_close(batched[1], single, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_bins", [2, 3, 8, 99])
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_bins": 100}, r"got 100 \* 0.01; to fix this: take fewer bins"),
        ({"num_bins": 128}, r"got 128 \* 0.01"),
        ({"num_bins": 4, "min_bin": 0.25}, r"got 4 \* 0.25"),
        ({"min_bin": 0.0}, "min_bin must be above 0"),
        ({"bound": 0.0}, "bound must be above 0 and finite, got 0.0"),
        ({"bound": -5.0}, "bound must be above 0"),
        ({"bound": float("nan")}, "bound must be above 0"),
        ({"bound": float("inf")}, "bound must be above 0"),
    ],
)
def test_bins_without_room_and_an_empty_domain_are_refused(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        RationalQuadraticSpline(**options)


@pytest.mark.parametrize("kind", ["spline", "affine-spline"])
def test_whatever_holds_such_a_spline_refuses_it(kind: CouplingKind) -> None:
    for make in (
        lambda: RevBlock(4, kind, num_bins=100),
        lambda: EnigmaFlow.build(1, coupling=kind, num_bins=100),
        lambda: EnigmaFlow(Enigma(4), marginal_bins=1000),
    ):
        with pytest.raises(ValueError, match="take fewer bins"):
            make()
    with pytest.raises(ValueError, match="bound must be above 0"):
        RevBlock(4, kind, bound=0.0)


@pytest.mark.parametrize("spline", [RationalQuadraticSpline(99), ChannelSplines(1, 999).spline])
def test_as_many_bins_as_fit_rise(spline: RationalQuadraticSpline) -> None:
    line_N1 = torch.linspace(-spline.bound, spline.bound, 4001, dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(0)
    raw_1P = torch.randn(1, spline.num_parameters, generator=generator, dtype=torch.float64)
    moved_N1, log_slope_N = spline.forward(line_N1, 3 * raw_1P.expand(len(line_N1), -1))
    assert (moved_N1.diff(dim=0) > 0).all()
    assert log_slope_N.isfinite().all()
