"""Half precision runs, and casting a module there and back loses what half precision lost only."""

import copy

import pytest
import torch

from enigma.bijections.machine import Enigma
from enigma.invertible_conv1x1 import InvertibleConv1x1
from enigma.jacobian_logdet import EnigmaFlow, load_flow, save_flow
from enigma.reflector import Reflector
from tests.enigma.every_bijection import BIJECTIONS

HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("name", BIJECTIONS)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_runs_and_is_close(name, dtype, stirred):
    torch.manual_seed(0)
    module = stirred(BIJECTIONS[name](), std=0.02)
    x = torch.randn(2, 5, module.num_channels).to(dtype)
    # The same weights, in float32.
    low = copy.deepcopy(module).to(dtype)
    high = copy.deepcopy(low).float()
    for inverse in (False, True):
        y = low(x, inverse=inverse)
        assert y.dtype == dtype
        assert (y.float() - high(x.float(), inverse=inverse)).abs().mean() <= 0.1


@pytest.mark.parametrize("name", BIJECTIONS)
@pytest.mark.parametrize("dtype", HALVES)
def test_there_and_back_the_log_det_and_the_inverse_are_right(name, dtype, stirred):
    torch.manual_seed(0)
    module = stirred(BIJECTIONS[name](), std=0.02).to(dtype).double().eval()
    x = torch.randn(1, module.num_channels, dtype=torch.float64)
    y, log_det = module.forward_with_log_det(x)
    torch.testing.assert_close(module.inverse(y), x, rtol=0, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(lambda v: module(v[None])[0], x[0])
    assert abs(torch.linalg.slogdet(jacobian).logabsdet - log_det[0]).item() <= 1e-9


@pytest.mark.parametrize("name", BIJECTIONS)
def test_a_state_dict_makes_the_same_module(name, stirred):
    module = stirred(BIJECTIONS[name](), seed=1).double()
    other = BIJECTIONS[name]().double()
    other.load_state_dict(module.state_dict())
    x = torch.randn(2, 5, module.num_channels, dtype=torch.float64)
    for one, same in zip(
        module.forward_with_log_det(x), other.forward_with_log_det(x), strict=True
    ):
        assert torch.equal(one, same)


@pytest.mark.parametrize("dtype", HALVES)
def test_casts_leave_a_rotation_as_it_was(dtype):
    rotor = InvertibleConv1x1(64, start="rotation", seed=3)
    before = rotor.double().weight()
    assert torch.equal(rotor.to(dtype).double().weight(), before)
    identity = torch.eye(64, dtype=torch.float64)
    torch.testing.assert_close(before @ before.T, identity, rtol=0, atol=1e-14)
    assert not torch.allclose(before, before.to(dtype).double(), rtol=0, atol=1e-5)


def test_a_rotation_that_was_stored_in_float64_can_be_read(tmp_path):
    flow = EnigmaFlow.build(d=6, num_rev_blocks=1, hidden_channels=8, axes_matter=False, seed=5)
    save_flow(flow, tmp_path)
    old = {
        key: value.double() * 2.0**-62 if key.endswith("rotation") else value
        for key, value in flow.state_dict().items()
    }
    assert sum(value.dtype == torch.float64 for value in old.values()) == 2
    again = load_flow(tmp_path)
    for rotor in again.modules():
        if isinstance(rotor, InvertibleConv1x1):
            rotor.rotation.zero_()
    again.load_state_dict(old)
    x = torch.randn(4, 6)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_only_the_direction_of_a_reflectors_vectors_counts(dtype, rank, size):
    torch.manual_seed(0)
    if dtype == torch.float16 and size != 1.0:
        pytest.skip("float16 does not hold such a number")
    plain = Reflector(6, rank).to(dtype)
    scaled = copy.deepcopy(plain)
    with torch.no_grad():
        scaled.vectors.mul_(size)
    x = torch.randn(4, 6).to(dtype)
    assert not torch.allclose(plain(x), x, atol=0.1)
    torch.testing.assert_close(scaled(x), plain(x), rtol=0.05, atol=0.05)
    reference = copy.deepcopy(plain).double()
    v, w = reference.vectors, x.double()
    expected = w - 2 * w @ v.T @ torch.linalg.inv(v @ v.T) @ v
    bound = {torch.float64: 1e-13, torch.float32: 1e-5}.get(dtype, 0.05)
    torch.testing.assert_close(plain(x).double(), expected, rtol=0, atol=bound)


def test_a_short_vector_reflects_exactly_too():
    exact = Reflector(6, exact=True)
    with torch.no_grad():
        exact.vectors.mul_(1e-25)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    assert torch.equal(exact(exact(x)), x)
    assert not torch.equal(exact(x), x)


@pytest.mark.parametrize("dtype", HALVES)
def test_exact_mode_refuses_half_precision(dtype):
    core = Enigma(8, 1, 1, rotor_form="lifting", exact=True).to(dtype)
    x = torch.randn(1, 3, 8).to(dtype)
    with pytest.raises(ValueError, match=rf"float32 or float64, got {dtype}; .* call \.float\(\)"):
        core(x)
    assert core.float()(x.float()).dtype == torch.float32


@pytest.mark.parametrize("dtype", HALVES)
def test_the_language_model_in_half_precision(make_lm, dtype):
    lm = make_lm()
    ids = torch.randint(1, 120, (2, 9))
    expected = lm(ids).softmax(-1)
    torch.testing.assert_close(lm.to(dtype)(ids).float().softmax(-1), expected, rtol=0, atol=0.02)
