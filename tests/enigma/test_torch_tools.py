"""What torch offers for any module works: torch.func, quantisation, late initialisation."""

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from enigma.invertible_conv1x1 import InvertibleConv1x1
from enigma.jacobian_logdet import EnigmaFlow
from enigma.layers.linear import Embedding, Linear
from tests.enigma.every_bijection import BIJECTIONS

# Splines are in their own test, tests/enigma/couplings/test_spline.py.
COMPOSED = [name for name in BIJECTIONS if "spline" not in name and name != "block, odd"]
IDS = torch.randint(1, 120, (2, 9), generator=torch.Generator().manual_seed(0))
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
LEARNED = ("permutation", "learnable plugboard")
"""In evaluation mode they are fixed and have no gradient."""

# torch.func.jvp itself uses it.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


def made(name, stirred):
    torch.manual_seed(0)
    module = stirred(BIJECTIONS[name]().double())
    return module, torch.randn(3, 5, module.num_channels, dtype=torch.float64)


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("training", [False, True])
def test_transforms_of_torch_func(name, training, stirred):
    module, x = made(name, stirred)
    module.train(training)
    y = module(x)
    torch.testing.assert_close(vmap(module)(x), y, rtol=0, atol=1e-12)
    tangent = torch.randn_like(x)
    _, along = jvp(module, (x,), (tangent,))
    jacobian = torch.autograd.functional.jacobian(module, x)
    torch.testing.assert_close(along, torch.tensordot(jacobian, tangent, 3))
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(transform(module)(x[0]), jacobian[0, :, :, 0])

    def loss(parameters):
        return (functional_call(module, parameters, (x,)) ** 3).sum()

    parameters = dict(module.named_parameters())
    if parameters and (training or name not in LEARNED):
        gradients = grad(loss)(parameters)
        loss(parameters).backward()
        for key, parameter in parameters.items():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(gradients[key], expected)


@pytest.mark.parametrize("name", ["affine block", "machine, reversed", "conv1x1 from a rotation"])
def test_second_derivatives_forward_over_reverse(name, stirred):
    module, x = made(name, stirred)
    x = x[0, :1]

    def value(x):
        return (module(x) ** 3).sum()

    expected = torch.autograd.functional.hessian(value, x)
    torch.testing.assert_close(jacfwd(jacrev(value))(x), expected)


# The kernel of attention has no rule for vmap.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    "changes", [{}, {"pointer_channels": 4}, {"num_driven_rotors": 1, "kernel_size": 3}]
)
@pytest.mark.parametrize("called_head", [False, True])
def test_the_training_loss_has_a_gradient_per_text(make_causal_lm, changes, called_head):
    model = make_causal_lm(attention_dropout=0.0, **changes).double().train()
    if called_head:
        model.lm.head.register_forward_hook(lambda *_: None)
    texts = IDS.repeat(2, 1).roll(1, 1)

    def loss(parameters, ids):
        return functional_call(model, parameters, (ids[None],), {"labels": ids[None]}).loss

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    found = vmap(grad(loss), (None, 0))(parameters, texts)
    for number, ids in enumerate(texts):
        model.zero_grad()
        model(ids[None], labels=ids[None]).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(found[name][number], parameter.grad, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor"
)
def test_quantize_dynamic_quantises_every_linear_layer(make_lm):
    lm = make_lm(kernel_size=2)
    ids = torch.randint(1, 120, (2, 9))
    num_linear = sum(isinstance(module, nn.Linear) for module in lm.modules())
    small = torch.ao.quantization.quantize_dynamic(lm, {nn.Linear}, dtype=torch.qint8)
    quantised = [isinstance(m, torch.ao.nn.quantized.dynamic.Linear) for m in small.modules()]
    assert sum(quantised) == num_linear > 20
    assert not any(type(module) is nn.Linear for module in small.modules())
    torch.testing.assert_close(small(ids).softmax(-1), lm(ids).softmax(-1), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("make", "std"),
    [
        (lambda: Linear(64, 256), 1 / 8),
        (lambda: Linear(64, 256, bias=True), 1 / 8),
        (lambda: Linear(64, 256, zero=True, bias=True), 0.0),
        (lambda: Embedding(256, 64), 1 / 8),
    ],
)
def test_layers_initialise_themselves_later_too(make, std):
    with torch.device("meta"):
        late = make()
    assert all(parameter.is_meta for parameter in late.parameters())
    late.to_empty(device="cpu")
    late.reset_parameters()
    first = make()
    for layer in (late, copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert type(layer) in {nn.Linear, nn.Embedding}
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        before = layer.weight.clone()
        layer.reset_parameters()
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert std == 0 or not torch.equal(layer.weight, before)


def test_the_memory_of_a_model_is_free_as_soon_as_it_is_gone(make_causal_lm):
    kept = []
    gc.disable()  # which would free what keeps itself alive, some time later
    try:
        for model in (make_causal_lm(memory="reversible"), EnigmaFlow.build(d=3)):
            loss = model(IDS, labels=IDS).loss if hasattr(model, "lm") else model(X)[1].sum()
            loss.backward()
            kept += [weakref.ref(parameter) for parameter in model.parameters()]
            del model, loss
        assert not any(reference() is not None for reference in kept)
    finally:
        gc.enable()


def test_the_same_seed_makes_the_same_layer_as_torch_would_draw_it():
    torch.manual_seed(4)
    layer = Linear(8, 3)
    torch.manual_seed(4)
    assert torch.equal(layer.weight, torch.empty(3, 8).normal_(std=8**-0.5))


PROGRAM = """
import sys
sys.modules["scipy"] = sys.modules["scipy.optimize"] = None
import torch
import enigma.model
core = enigma.model.Enigma(d=8, num_rev_blocks=1)
core(torch.ones(1, 3, 8))
try:
    enigma.model.Enigma(d=8, num_rev_blocks=1, learnable_plugboard=True)(torch.ones(1, 3, 8))
except ModuleNotFoundError as error:
    print(error)
"""


def test_only_a_learned_permutation_needs_scipy():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "needs the package scipy; to fix this: pip install scipy" in done.stdout


class NoFloat64(TorchDispatchMode):
    """A device without float64, as MPS is: no operation may return it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                raise TypeError(f"{func} returned float64")
        return result


@pytest.mark.parametrize("name", BIJECTIONS)
def test_float32_modules_hold_and_compute_no_float64(name):
    module = BIJECTIONS[name]()
    assert all(tensor.dtype != torch.float64 for tensor in module.state_dict().values())
    x = torch.randn(2, 5, module.num_channels, requires_grad=True)
    with NoFloat64():
        if name not in LEARNED and "inverse" not in name:
            module(x).sum().backward()
        # PLU rotors are solved and permutations assigned in float64: on the CPU, as MPS has none.
        if name not in LEARNED and not any(
            isinstance(p, InvertibleConv1x1) for p in module.modules()
        ):
            module.inverse(x).sum().backward()


def test_no_token_no_text_and_one_text_alone(make_lm):
    for changes in ({}, {"kernel_size": 3}, {"num_rotors": 0}):
        lm = make_lm(**changes)
        for shape in ((2, 0), (0, 3), (0, 0)):
            assert lm(torch.ones(shape, dtype=torch.int64)).shape == (*shape, 120)
        alone = torch.arange(1, 6)
        assert torch.equal(lm(alone), lm(alone.unsqueeze(0))[0])
