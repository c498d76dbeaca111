"""One test of every bijection: shape, inverse, Jacobian and log-determinant."""

import re

import pytest
import torch

from enigma.bijections.base import TokenContext
from enigma.bijections.constant_weights import constant_weights
from enigma.bijections.lifting import LiftingConv1x1
from enigma.couplings.settings import COUPLINGS
from enigma.invertible_conv1x1 import (
    DynamicInvertibleConv1x1Stack,
    InvertibleConv1x1,
    InvertibleConv1x1Stack,
)
from enigma.jacobian_logdet import jacobian_log_det
from enigma.model import Enigma, EnigmaLM
from enigma.plugboard import Plugboard
from enigma.reflector import Reflector
from enigma.rev_block import RevBlock
from enigma.simple_permutation import SimplePermutation
from tests.enigma.every_bijection import BIJECTIONS, D

# Its tokens are not mapped one by one; it has a test of its own below.
ONE_TOKEN_AT_A_TIME = [name for name in BIJECTIONS if "convolution" not in name]


@pytest.mark.parametrize("name", ONE_TOKEN_AT_A_TIME)
def test_shape_inverse_and_log_det(name, stirred):
    torch.manual_seed(0)
    # Eight spline couplings in a row magnify rounding errors: 1e-12 needs less noise.
    module = stirred(BIJECTIONS[name]().double(), std=0.03 if "splines" in name else 0.1)
    x = torch.randn(2, 6, module.num_channels, dtype=torch.float64)
    y, log_det = module.forward_with_log_det(x)
    again, log_det_back = module.inverse_with_log_det(y)
    assert y.shape == x.shape
    assert log_det.shape == x.shape[:-1]
    assert torch.equal(module(x), y)
    assert (again - x).abs().max() <= 1e-12 * x.abs().max()
    assert (log_det + log_det_back).abs().max() <= 1e-10
    for t in range(x.shape[1]):  # the position of the rotors changes from token to token
        context = TokenContext(torch.tensor([t]))
        reference = jacobian_log_det(lambda v, k=context: module(v[None, None], k)[0, 0], x[0, t])
        assert abs(reference - log_det[0, t]).item() <= 1e-8


def test_rotors_take_their_position_from_the_index_alone(stirred):
    rotors = stirred(DynamicInvertibleConv1x1Stack(D, num_layers=2, positions=4).double())
    x = torch.randn(1, 20, D, dtype=torch.float64)
    whole = rotors(x)
    assert torch.equal(whole, rotors(x))
    late = rotors(x[:, 7:], TokenContext.of(x[:, 7:], start=7))
    torch.testing.assert_close(late, whole[:, 7:], rtol=0, atol=1e-13)
    rows = rotors(x.expand(2, -1, -1), TokenContext(torch.arange(20).expand(2, -1)))
    torch.testing.assert_close(rows[1], whole[0], rtol=0, atol=1e-13)


def test_every_setting_of_the_rotors_is_a_different_map(stirred):
    rotors = stirred(DynamicInvertibleConv1x1Stack(D, num_layers=2, positions=4).double())
    same_token = torch.randn(D, dtype=torch.float64).expand(1, 16, D)
    outputs = rotors(same_token)[0]
    distance = torch.cdist(outputs, outputs) + torch.eye(16)
    assert distance.min() > 1e-3
    assert torch.allclose(rotors(same_token, TokenContext(torch.arange(16, 32)))[0], outputs)


def test_the_inverse_return_path_makes_the_machine_its_own_inverse(stirred):
    machine = stirred(Enigma(D, 2, 2, 4, return_path="inverse").double())
    x = torch.randn(2, 9, D, dtype=torch.float64)
    assert not torch.allclose(machine(x), x)
    torch.testing.assert_close(machine(machine(x)), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", COUPLINGS)
def test_a_convolution_over_the_tokens_keeps_the_log_det(kind, stirred):
    block = stirred(RevBlock(4, kind, kernel_size=3).double())
    x = torch.randn(5, 4, dtype=torch.float64)
    y, log_det = block.forward_with_log_det(x)
    torch.testing.assert_close(block.inverse(y), x, rtol=0, atol=1e-12)
    reference = jacobian_log_det(lambda v: block(v.view(5, 4)).flatten(), x.flatten())
    assert abs(reference - log_det.sum()).item() <= 1e-8


def test_the_plugboard_is_never_the_identity():
    for seed in range(20):
        assert (Plugboard(2, seed=seed).partner != torch.arange(2)).all()
        board = Plugboard(26, seed=seed).partner
        assert int((board != torch.arange(26)).sum()) == 20
        assert torch.equal(board[board], torch.arange(26))


@pytest.mark.parametrize("name", BIJECTIONS)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_another_width_is_refused(name, direction):
    """A width that is a multiple or a divisor, too: as many numbers would fit."""
    module = BIJECTIONS[name]()
    width = module.num_channels
    for shape in ((2, width, width - 3), (2, 3, 2 * width), (width, 1), (width // 2,), ()):
        expected = rf"expected \(\.\.\., {width}\), got {re.escape(str(shape))}$"
        with pytest.raises(ValueError, match=expected):
            module(torch.randn(shape), inverse=direction == "inverse")


@pytest.mark.parametrize("name", BIJECTIONS)
@pytest.mark.parametrize("direction", ["forward_with_log_det", "inverse_with_log_det"])
def test_no_token_and_no_text(name, direction):
    module = BIJECTIONS[name]()
    for shape in ((2, 0), (0, 3), (0,), (0, 0, 2), ()):
        x = torch.randn(*shape, module.num_channels, requires_grad=True)
        y, log_det = getattr(module, direction)(x)
        assert y.shape == x.shape
        assert log_det.shape == x.shape[:-1]
        y.sum().backward()
        assert x.grad.shape == x.shape


@pytest.mark.parametrize("num_channels", [1, 7, 8, 12, 34, 64, 512])
def test_positions_that_fit_are_the_default(num_channels):
    stack = DynamicInvertibleConv1x1Stack(num_channels, num_layers=2)
    assert num_channels % stack.positions == 0
    assert stack.positions == max(p for p in range(1, 17) if num_channels % p == 0)
    x = torch.randn(2, 5, num_channels)
    torch.testing.assert_close(stack.inverse(stack(x)), x)


@pytest.mark.parametrize("d", [2, 8, 10, 24])
def test_a_machine_of_any_even_width_can_be_made_and_made_again(d):
    core = Enigma(d=d)
    assert Enigma(**core.settings).rotors.positions == core.rotors.positions
    assert EnigmaLM(vocab_size=11, d=d * 4, num_heads=1)(torch.ones(1, 3).long()).shape == (
        1,
        3,
        11,
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: DynamicInvertibleConv1x1Stack(10, 1, positions=4),
            r"divide the width 10, got 4; to fix this: take 10, or another of \[1, 2, 5, 10\]",
        ),
        (lambda: InvertibleConv1x1(0), "at least 1, got 0"),
        (lambda: InvertibleConv1x1(4, start="qr"), "'permutation', 'rotation'.*got 'qr'"),
        (lambda: InvertibleConv1x1Stack(4, -1), "not be negative"),
        (lambda: InvertibleConv1x1Stack(4, 1, form="qr"), "form must be one of"),
        (lambda: InvertibleConv1x1Stack(4, 1, exact=True), "expected form='lifting'"),
        (
            lambda: InvertibleConv1x1Stack(4, 1, form="lifting", start="permutation"),
            "starts at the identity",
        ),
        (lambda: LiftingConv1x1(1), "at least 2"),
        (lambda: Reflector(4, rank=2, exact=True), "needs rank 1"),
        (lambda: RevBlock(4, "affine", exact=True), "only an additive coupling can be exact"),
        (lambda: RevBlock(4, kernel_size=0), "kernel_size must be at least 1"),
        (lambda: SimplePermutation(0), "at least 1"),
        (lambda: SimplePermutation(4, temperatures=(1.0, 0.0)), "must be above 0"),
        (lambda: SimplePermutation(4).set_progress(1.5), r"in \[0, 1\], got 1.5"),
        (lambda: Plugboard(1), "at least 2"),
        (lambda: Plugboard(4, 3), "from 1 to 2"),
        (lambda: Reflector(4, rank=5), "from 1 to num_channels=4"),
        (lambda: RevBlock(1), "at least 2"),
        (lambda: RevBlock(4, "cubic"), "coupling must be one of"),
        (lambda: RevBlock(4, "spline", num_bins=1), "num_bins must be at least 2, got 1"),
        (lambda: Enigma(8, return_path="back"), "return_path must be one of"),
        (lambda: Enigma(8, num_rev_blocks=-1), "num_rev_blocks must not be negative"),
    ],
)
def test_errors_say_what_was_expected_and_got(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_what_a_caller_does_to_a_log_determinant_does_not_come_back(stirred):
    stack = stirred(InvertibleConv1x1Stack(4, 1))
    with torch.no_grad(), constant_weights():
        first = stack.forward_with_log_det(torch.ones(1, 4))[1]
        expected = first.clone()
        first += 100
        assert torch.equal(stack.forward_with_log_det(torch.ones(1, 4))[1], expected)
    assert stack.forward_with_log_det(torch.ones(1, 4).double())[1].dtype == torch.float64
