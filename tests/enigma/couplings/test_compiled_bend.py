"""The compiled spline says what the operations say, and is left alone where it cannot."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import enigma.couplings
from enigma.couplings import compiled_bend
from enigma.couplings.spline import RationalQuadraticSpline
from enigma.couplings.transforms import Affine

pytest.importorskip("numba")
KERNELS = Path(enigma.couplings.__file__).parent


def draw(spline, vectors, channels, *, seed=0, spread=0.5):
    """Values inside and outside of the domain; raw parameters as a network makes them."""
    generator = torch.Generator().manual_seed(seed)
    value = 3 * torch.randn(vectors, channels, generator=generator)
    size = (vectors, spline.num_parameters * channels)
    return value, spread * torch.randn(size, generator=generator)


def in_operations(spline, value, raw, grads, *, inverted):
    """What the operations give: mapped values, logs of slopes, and the two gradients."""
    inputs = value.clone().requires_grad_(), raw.clone().requires_grad_()
    outputs = spline.bend_in_operations(*inputs, inverted=inverted)
    found = torch.autograd.grad(outputs, inputs, [grad.to(value) for grad in grads])
    return *(output.detach() for output in outputs), *found


@settings(max_examples=60)
@given(
    bins=st.integers(2, 9),
    vectors=st.integers(1, 150),
    channels=st.integers(1, 5),
    affine=st.booleans(),
    inverted=st.booleans(),
    seed=st.integers(0, 99),
    spread=st.sampled_from([0.0, 0.5]),
)
def test_it_is_what_the_operations_give_in_float64(  # noqa: PLR0917
    bins, vectors, channels, affine, inverted, seed, spread
):
    spline = RationalQuadraticSpline(bins, affine=Affine() if affine else None)
    value, raw = draw(spline, vectors, channels, seed=seed, spread=spread)
    grads = torch.ones(vectors, channels), torch.full((vectors,), 0.5)
    inputs = value.clone().requires_grad_(), raw.clone().requires_grad_()
    bent = spline.inverse if inverted else spline.forward
    outputs = bent(*inputs)
    found = (*outputs, *torch.autograd.grad(outputs, inputs, grads))
    expected = in_operations(spline, value.double(), raw.double(), grads, inverted=inverted)
    for one, other in zip(found, expected, strict=True):
        close = torch.isclose(one.double(), other, rtol=1e-4, atol=1e-4).view(vectors, -1)
        # Rounding may put a value on the other side of a knot, where the gradient jumps.
        assert (~close.all(dim=1)).sum() <= 1


@pytest.mark.parametrize("inverted", [False, True])
def test_it_is_no_less_exact_than_the_operations_in_float32(inverted):
    spline = RationalQuadraticSpline(affine=Affine())
    value, raw = draw(spline, 3000, 2)
    exact = spline.bend_in_operations(value.double(), raw.double(), inverted=inverted)
    rounded = spline.bend_in_operations(value, raw, inverted=inverted)
    found = (spline.inverse if inverted else spline.forward)(value, raw)
    for one, other, true in zip(found, rounded, exact, strict=True):
        errors = [(x.double() - true).square().mean().sqrt() for x in (one, other)]
        assert errors[0] < 2e-6
        assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("affine", [None, Affine()])
@pytest.mark.parametrize("inverted", [False, True])
def test_what_is_not_a_number_stays_so(affine, inverted):
    spline = RationalQuadraticSpline(4, affine=affine)
    columns = spline.num_parameters
    raw = torch.zeros(columns + 1, columns)
    raw[range(columns), range(columns)] = torch.nan
    value = torch.full((columns + 1, 1), 0.3)
    value[-1] = torch.nan
    bent = spline.inverse if inverted else spline.forward
    expected = spline.bend_in_operations(value, raw, inverted=inverted)
    for one, other in zip(bent(value, raw), expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
    assert expected[0].isnan().sum() > columns // 2


def test_the_gradient_can_be_differentiated():
    spline = RationalQuadraticSpline(5, affine=Affine())
    second = []
    for dtype in (torch.float32, torch.float64):
        inputs = [t.to(dtype).requires_grad_() for t in draw(spline, 20, 3)]
        moved, log_slope = spline.forward(*inputs)
        first = torch.autograd.grad(moved.sin().sum() + log_slope.sum(), inputs, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    for one, other in zip(*second, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


def test_raw_parameters_may_lie_anywhere_and_threads_change_nothing(monkeypatch):
    spline = RationalQuadraticSpline(8)
    value, raw = draw(spline, 500, 3)
    beside = torch.cat((raw, raw), dim=1)[:, raw.shape[1] :]
    alone = spline.forward(value, raw)
    monkeypatch.setattr(compiled_bend, "_PART", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for one, other in zip(spline.forward(value, beside), alone, strict=True):
        assert torch.equal(one, other)


def test_no_vectors_are_no_work():
    spline = RationalQuadraticSpline(3)
    moved, log_slope = spline.forward(torch.ones(0, 2), torch.ones(0, spline.num_parameters * 2))
    assert (moved.shape, log_slope.shape) == ((0, 2), (0,))


def test_the_dtype_is_that_of_the_values_whatever_the_default():
    spline = RationalQuadraticSpline(3)
    value, raw = (t.requires_grad_() for t in draw(spline, 5, 2))
    torch.set_default_dtype(torch.float64)
    try:
        moved, log_slope = spline.forward(value, raw)
        (moved.sum() + log_slope.sum()).backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in (moved, log_slope, value.grad, raw.grad)} == {torch.float32}


@pytest.mark.parametrize(
    "tensors",
    [(torch.ones(1).double(),), (torch.ones(1), torch.ones(1, device="meta"))],
)
def test_other_tensors_are_left_to_the_operations(tensors):
    assert compiled_bend.can_compile(torch.ones(1))
    assert not compiled_bend.can_compile(*tensors)


def test_without_numba_the_operations_do_it():
    script = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch; from enigma.jacobian_logdet import EnigmaFlow\n"
        "flow = EnigmaFlow.build(2); print(flow.log_prob(torch.zeros(3, 2)).shape)\n"
        "assert 'enigma.couplings.spline_kernels' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "torch.Size([3])"


@pytest.mark.parametrize(
    ("file", "built_on"),
    [
        ("spline_kernels.py", ["vector_kernels.py"]),
        ("spline_gradient_kernels.py", ["vector_kernels.py", "spline_kernels.py"]),
    ],
)
def test_machine_code_on_disk_is_not_older_than_what_it_is_built_on(file, built_on):
    """numba compiles a file again when it changes, not when one that it imports from does."""
    parts = b"".join((KERNELS / name).read_bytes() for name in built_on)
    digest = hashlib.sha256(parts).hexdigest()[:12]
    assert f'_BUILT_ON = "{digest}"' in (KERNELS / file).read_text(encoding="utf-8"), (
        f"to fix this: write {digest} there"
    )
