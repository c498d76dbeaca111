"""Exactness over widths, depths, dtypes, positions and batch shapes."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from enigma.bijections.base import TokenContext
from enigma.bijections.exact import round_to_grid
from enigma.bijections.machine import Enigma
from enigma.couplings.settings import COUPLINGS
from enigma.invertible_conv1x1 import DynamicInvertibleConv1x1Stack
from enigma.jacobian_logdet import jacobian_log_det
from enigma.rev_block import RevBlock

PATHS = ("reversed", "untied", "inverse")
BATCHES = st.lists(st.integers(1, 3), max_size=2).map(tuple)
# The stirring fixture holds no state, so it may be shared by the examples of one test.
quick = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def machines(draw, **fixed):
    positions = draw(st.sampled_from([1, 2, 3, 4]))
    options = {
        "d": positions * draw(st.integers(1, 4)) * 2,
        "num_rev_blocks": draw(st.integers(0, 4)),
        "num_rotors": draw(st.integers(0, 4)),
        "positions": positions,
        "coupling": draw(st.sampled_from(COUPLINGS)),
        "return_path": draw(st.sampled_from(PATHS)),
        "rotors_between_blocks": (between := draw(st.booleans())),
        "own_rotors": between and draw(st.booleans()),
        "residual": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "rotor_form": draw(st.sampled_from(["plu", "lifting"])),
        "kernel_size": draw(st.integers(1, 3)),
        "learnable_plugboard": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }
    return Enigma(**{**options, **fixed})


def stream(core, batch, length, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, length, core.d, generator=generator, dtype=torch.float64).to(dtype)


@quick
@given(core=machines(), batch=BATCHES, length=st.integers(1, 40), seed=st.integers(0, 99))
def test_float64_round_trip(core, batch, length, seed, stirred):
    core = stirred(core.double(), std=0.03, seed=seed)
    x = stream(core, batch, length, torch.float64, seed)
    with torch.no_grad():
        error = (core.inverse(core(x)) - x).abs().max() / x.abs().max()
    assert error.item() <= 1e-12


@quick
@given(
    core=machines(coupling="additive"),
    batch=BATCHES,
    length=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_float32_round_trip_of_the_language_models_core(core, batch, length, seed, stirred):
    core = stirred(core, std=0.01, seed=seed)
    x = stream(core, batch, length, torch.float32, seed)
    with torch.no_grad():
        error = (core.inverse(core(x)) - x).abs().max() / x.abs().max()
    assert error.item() <= 1e-5  # few channels: a normalised half may be close to 0


@quick
@given(
    core=machines(coupling="additive", rotor_form="lifting", exact=True),
    batch=BATCHES,
    length=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_exact_mode_returns_the_same_bits(core, batch, length, seed, stirred):
    core = stirred(core, std=0.1, seed=seed)
    x = round_to_grid(stream(core, batch, length, torch.float32, seed))
    with torch.no_grad():
        assert torch.equal(core.inverse(core(x)), x)


@quick
@given(core=machines(return_path="inverse"), seed=st.integers(0, 99))
def test_the_historical_machine_is_its_own_inverse(core, seed, stirred):
    core = stirred(core.double(), std=0.03, seed=seed)
    x = stream(core, (2,), 7, torch.float64, seed)
    with torch.no_grad():
        assert (core(core(x)) - x).abs().max() <= 1e-11 * x.abs().max()


@quick
@given(
    width=st.integers(2, 12),
    coupling=st.sampled_from(COUPLINGS),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 99),
)
def test_a_reversible_block_keeps_the_published_bound(width, coupling, dtype, seed, stirred):
    block = stirred(RevBlock(width, coupling).to(dtype), std=0.05, seed=seed)
    x = torch.randn(3, 5, width, dtype=dtype)
    with torch.no_grad():
        error = (block.inverse(block(x)) - x).abs().max() / x.abs().max()
    assert error.item() <= (1e-8 if dtype == torch.float64 else 1e-4)


@quick
@given(core=machines(kernel_size=1), index=st.integers(0, 300), seed=st.integers(0, 99))
def test_log_det_at_any_position_of_the_rotors(core, index, seed, stirred):
    core = stirred(core.double().eval(), std=0.03, seed=seed)
    context = TokenContext(torch.tensor([index]))
    x = stream(core, (), 1, torch.float64, seed)
    _, log_det = core.forward_with_log_det(x, context)
    reference = jacobian_log_det(lambda v: core(v.unsqueeze(0), context)[0], x[0])
    assert abs(reference - log_det[0]).item() <= 1e-8


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_log_det_at_every_setting_of_two_rotors(coupling, stirred):
    core = stirred(Enigma(6, 1, 2, 3, coupling=coupling).double())
    x = torch.randn(6, dtype=torch.float64)
    for index in range(9):
        context = TokenContext(torch.tensor([index]))
        _, log_det = core.forward_with_log_det(x.unsqueeze(0), context)
        reference = jacobian_log_det(lambda v, k=context: core(v.unsqueeze(0), k)[0], x)
        assert abs(reference - log_det[0]).item() <= 1e-8


@quick
@given(positions=st.integers(1, 6), num_layers=st.integers(1, 4), index=st.integers(0, 2**40))
def test_the_vectorised_rotors_follow_their_definition(positions, num_layers, index, stirred):
    width = 2 * positions
    stack = stirred(DynamicInvertibleConv1x1Stack(width, num_layers, positions).double())
    x = torch.randn(width, dtype=torch.float64)
    y = x
    for k, rotor in enumerate(stack.rotors()):
        turn = (index // positions**k) % positions * (width // positions)
        y = rotor(y.roll(-turn)).roll(turn)
    stepped = stack(x.unsqueeze(0), TokenContext(torch.tensor([index])))[0]
    torch.testing.assert_close(stepped, y, rtol=0, atol=1e-12)
