"""Exact mode returns the same bits, whatever the weights and the depth."""

import pytest
import torch

from enigma.bijections.exact import GRID, exact_add, round_to_grid
from enigma.bijections.machine import Enigma
from enigma.bijections.round_trip import core_round_trip_error
from enigma.configuration_enigma import EnigmaConfig
from enigma.reflector import Reflector


@pytest.mark.parametrize("path", ["reversed", "untied", "inverse"])
@pytest.mark.parametrize("depth", [1, 4, 16])
def test_the_round_trip_is_bit_exact_in_float32(path, depth, stirred):
    core = Enigma(
        16, depth, 3, 4, rotor_form="lifting", exact=True, return_path=path, kernel_size=3
    )
    report = core_round_trip_error(stirred(core, std=0.1), length=20)
    assert report.float32 == report.float32_reversed == 0.0


def test_the_machine_is_bit_exactly_its_own_inverse(stirred):
    core = Enigma(16, 2, 2, 4, rotor_form="lifting", exact=True, return_path="inverse")
    stirred(core)
    x = round_to_grid(torch.randn(2, 9, 16))
    assert torch.equal(core(core(x)), x)
    assert not torch.equal(core(x), x)


@pytest.mark.parametrize("width", [2, 3, 32])
def test_the_exact_reflector_reflects_and_is_an_involution(width):
    torch.manual_seed(width)
    exact, plain = Reflector(width, exact=True), Reflector(width)
    plain.load_state_dict(exact.state_dict())
    x = round_to_grid(5 * torch.randn(50, width))
    torch.testing.assert_close(exact(x), plain(x), rtol=0, atol=16 * GRID)
    assert torch.equal(exact(exact(x)), x)


def test_a_reflector_along_the_first_axis_has_no_turn():
    exact = Reflector(3, exact=True)
    with torch.no_grad():
        exact.vectors.copy_(torch.tensor([[-2.0, 0.0, 0.0]]))
    assert exact(torch.tensor([1.0, 2.0, 3.0])).tolist() == [-1.0, 2.0, 3.0]


def test_rounding_passes_the_gradient_through():
    x = torch.randn(5, requires_grad=True)
    y = round_to_grid(x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(5))
    assert (y - x).abs().max() <= GRID / 2


@pytest.mark.parametrize("value", [1500.0, float("nan")])
def test_a_stream_beyond_the_grid_is_an_error(value):
    with pytest.raises(ValueError, match="exact mode needs numbers below 1024"):
        exact_add(torch.zeros(3), torch.full((3,), value))


def test_an_exact_model_trains_and_needs_lifting_rotors(make_causal_lm):
    model = make_causal_lm(exact=True, rotor_form="lifting").train()
    ids = torch.randint(1, 120, (2, 8))
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(Exception, match="needs rotor_form='lifting'"):
        EnigmaConfig(exact=True)
