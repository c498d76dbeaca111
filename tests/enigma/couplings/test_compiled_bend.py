"""The compiled spline says what the operations say, and is left alone where it cannot."""

import hashlib
import os
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
    around = [
        in_operations(spline, value.double() + step, raw.double(), grads, inverted=inverted)
        for step in (-1e-5, 0.0, 1e-5)
    ]
    for one, below, other, above in zip(found, *around, strict=True):
        # Rounding may put a value on the other side of a knot, where the gradient jumps.
        room = 1e-4 * (1 + other.abs()) + (above - below).abs()
        assert ((one.double() - other).abs() <= room).all()


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


@pytest.mark.parametrize("place", [0.3, 9.0])
@pytest.mark.parametrize("affine", [None, Affine()])
@pytest.mark.parametrize("inverted", [False, True])
def test_what_is_not_a_number_stays_so(affine, inverted, place):
    spline = RationalQuadraticSpline(4, affine=affine)
    columns = spline.num_parameters
    raw = torch.zeros(columns + 1, columns)
    raw[range(columns), range(columns)] = torch.nan
    value = torch.full((columns + 1, 1), place)
    value[-1] = torch.nan
    bent = spline.inverse if inverted else spline.forward
    expected = spline.bend_in_operations(value, raw, inverted=inverted)
    for one, other in zip(bent(value, raw), expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
    assert expected[1].isnan().sum() > columns // 2


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


def with_gradients(spline, value, raw):
    """What a spline returns, and the gradients of it."""
    inputs = value.clone().requires_grad_(), raw.detach().requires_grad_()
    outputs = spline.forward(*inputs)
    total = outputs[0].sin().sum() + outputs[1].sum()
    return *(output.detach() for output in outputs), *torch.autograd.grad(total, inputs)


def test_raw_parameters_may_lie_anywhere_and_threads_change_nothing(monkeypatch):
    spline = RationalQuadraticSpline(8)
    value, raw = draw(spline, 500, 3)
    beside = torch.cat((raw, raw), dim=1)[:, raw.shape[1] :]
    alone = with_gradients(spline, value, raw)
    monkeypatch.setattr(compiled_bend, "_PART", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for one, other in zip(with_gradients(spline, value, beside), alone, strict=True):
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
    "change",
    [
        lambda value, raw: (value.double(), raw.double()),
        lambda value, raw: (value, raw.to("meta")),
        lambda value, raw: (value, raw[:1]),
        lambda value, raw: (value[:1], raw),
        lambda value, raw: (value, raw[:, :-1]),
        lambda value, raw: (value[0], raw),
        lambda value, raw: (value, raw.as_subclass(type("Own", (torch.Tensor,), {}))),
    ],
)
def test_other_tensors_are_left_to_the_operations(change):
    spline = RationalQuadraticSpline(3)
    value, raw = draw(spline, 4, 2)
    assert compiled_bend.can_compile(value, raw, spline)
    assert not compiled_bend.can_compile(*change(value, raw), spline)


def test_shapes_that_do_not_fit_are_refused_in_every_dtype():
    spline = RationalQuadraticSpline(3)
    value, raw = draw(spline, 4, 2)
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(RuntimeError):
            spline.forward(value.to(dtype), raw[:1].to(dtype))


def test_a_batch_of_gradients_of_the_log_determinant_alone():
    spline = RationalQuadraticSpline(4)
    value, raw = (t.requires_grad_() for t in draw(spline, 3, 2))
    _, log_slope = spline.forward(value, raw)
    both = torch.autograd.grad(
        log_slope, (value, raw), torch.eye(3)[:2], is_grads_batched=True, retain_graph=True
    )
    single = torch.autograd.grad(log_slope, (value, raw), torch.eye(3)[1])
    for batched, one in zip(both, single, strict=True):
        torch.testing.assert_close(batched[1], one, rtol=1e-4, atol=1e-5)


def test_where_numba_cannot_work_the_operations_do_it_and_say_so(tmp_path):
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 1.0 or less')")
    script = (
        "import torch, warnings; from enigma.jacobian_logdet import EnigmaFlow\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(2): EnigmaFlow.build(2).log_prob(torch.zeros(3, 2))\n"
        "print([str(w.message) for w in caught])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.count("splines are not compiled: Numba needs NumPy 1.0 or less") == 1


@pytest.mark.parametrize(
    ("file", "built_on"),
    [
        ("spline_kernels.py", ["vector_kernels.py"]),
        ("spline_gradient_kernels.py", ["vector_kernels.py", "spline_kernels.py"]),
        (
            "table_kernels.py",
            ["vector_kernels.py", "spline_kernels.py", "spline_gradient_kernels.py"],
        ),
    ],
)
def test_machine_code_on_disk_is_not_older_than_what_it_is_built_on(file, built_on):
    """numba compiles a file again when it changes, not when one that it imports from does."""
    parts = b"".join((KERNELS / name).read_bytes() for name in built_on)
    digest = hashlib.sha256(parts).hexdigest()[:12]
    assert f'_BUILT_ON = "{digest}"' in (KERNELS / file).read_text(encoding="utf-8"), (
        f"to fix this: write {digest} there"
    )
