"""What reversible training cannot give is an error and never a wrong gradient.

The gradients are compared with those of ordinary autograd, to which the errors point.
"""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional

from enigma.reversible import CouplingStep, ReversibleSequence, run_streams

IDS = torch.randint(1, 120, (2, 12), generator=torch.Generator().manual_seed(0))
DROPOUT = {"attention_dropout": 0.3, "hidden_dropout": 0.3}


def evaluate(model):
    model.eval()


def drop_more_channels(model):
    model.lm.layers[1].hidden_dropout = 0.6


def drop_more_weights(model):
    model.lm.layers[0].attention.attention_dropout = 0.6


def train_a_part_alone(model):
    model.lm.layers[2].training = False


def draw_other_noise(model):
    model.lm.core.plugboard.permutation.set_progress(0.0, seed=1)


def freeze(model):
    model.lm.layers[1].mlp_up.weight.requires_grad_(False)


def replace(model):
    layer = model.lm.core.blocks[0].f.network.out
    layer.weight = nn.Parameter(layer.weight.detach().clone())


CHANGES = [
    evaluate,
    drop_more_channels,
    drop_more_weights,
    train_a_part_alone,
    draw_other_noise,
]


@pytest.mark.parametrize("memory", ["checkpoint", "reversible"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_switch_between_the_passes_is_an_error(make_causal_lm, memory, change):
    model = make_causal_lm(memory=memory, learnable_plugboard=True, **DROPOUT).train()
    loss = model(IDS, labels=IDS).loss
    change(model)
    with pytest.raises(RuntimeError, match=r"as in the forward pass, got .* memory='plain'"):
        loss.backward()


@pytest.mark.parametrize("change", [freeze, replace])
def test_other_trainable_parameters_are_an_error(make_causal_lm, change):
    model = make_causal_lm(memory="reversible").train()
    loss = model(IDS, labels=IDS).loss
    change(model)
    with pytest.raises(RuntimeError, match="expected the trainable parameters of the forward pass"):
        loss.backward()


@pytest.mark.parametrize("change", [evaluate, freeze])
def test_the_plain_mode_to_which_the_errors_point_takes_it(make_causal_lm, change):
    model = make_causal_lm(memory="plain", **DROPOUT).train()
    torch.manual_seed(1)
    model(IDS, labels=IDS).loss.backward()
    expected = model.lm.core.reflector.vectors.grad.clone()
    model.zero_grad()
    torch.manual_seed(1)
    loss = model(IDS, labels=IDS).loss
    change(model)
    loss.backward()
    assert torch.equal(model.lm.core.reflector.vectors.grad, expected)


def pairs(seed=0):
    torch.manual_seed(seed)
    network = [nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in range(4)]
    return ReversibleSequence(zip(network[::2], network[1::2], strict=True)).double()


def square_sum(model, x):
    y1, y2 = model(x, x.cos())
    return (y1 * y2).sum() + y1.pow(3).sum()


@pytest.mark.parametrize("autocast", [True, False])
def test_another_autocast_in_the_backward_pass_is_that_of_ordinary_autograd(
    make_causal_lm, autocast
):
    grads = {}
    for memory in ("plain", "reversible"):
        model = make_causal_lm(memory=memory, exact=True, rotor_form="lifting").train()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(IDS, labels=IDS).loss
        with torch.autocast("cpu", torch.bfloat16, enabled=not autocast):
            loss.backward()
        grads[memory] = [p.grad for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(*grads.values(), strict=True))


@pytest.mark.parametrize(
    "second",
    [
        torch.autograd.functional.hessian,
        lambda f, x: torch.autograd.functional.hvp(f, x, torch.ones_like(x)),
        lambda f, x: torch.autograd.grad(f(x), x, create_graph=True),
    ],
)
def test_a_second_derivative_is_an_error_that_names_the_mode_which_has_it(second):
    model, x = pairs(), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"got create_graph=True.*memory='plain'"):
        second(lambda v: square_sum(model, v), x)
    results = []
    for memory in ("plain", "checkpoint"):
        model.memory = memory
        results.append(torch.autograd.functional.hessian(lambda v: square_sum(model, v), x))
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)
    assert torch.autograd.gradgradcheck(lambda v: square_sum(model, v), x)


def in_forward_mode(function):
    def gradient(x):
        along = []
        for direction in torch.eye(x.numel(), dtype=x.dtype):
            with forward_ad.dual_level():
                y = function(forward_ad.make_dual(x, direction.view(x.shape)))
                along.append(forward_ad.unpack_dual(y).tangent)
        return torch.stack(along).view(x.shape)

    return gradient


# torch 2.13 scripts its own formulas for `jacfwd`.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd, in_forward_mode])
def test_a_transform_of_torch_func_is_an_error_that_names_the_mode_which_has_it(transform):
    model, x = pairs(), torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"no transform of torch.func.*memory='plain'"):
        transform(lambda v: square_sum(model, v))(x)
    model.memory = "plain"
    expected = torch.autograd.functional.jacobian(lambda v: square_sum(model, v), x)
    gradient = transform(lambda v: square_sum(model, v))(x)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", ["plain", "reversible"])
def test_a_captured_tensor_that_wants_a_gradient_is_an_error(memory):
    encoder, own = nn.Linear(3, 3), nn.Linear(3, 3)
    features = encoder(torch.ones(3))
    step = CouplingStep((lambda x: own(x) + features, (own,)), (own, (own,)), (0, 1))
    total = sum(y.sum() for y in run_streams([step], (torch.ones(2, 3),) * 2, memory))
    if memory == "plain":
        total.backward()
        assert encoder.weight.grad is not None
        return
    with pytest.raises(RuntimeError, match=r"reads another tensor \(3,? ?3?,?\) which wants"):
        total.backward()


def test_counting_calls_is_no_change():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return functional.linear(x, self.weight)

    model = ReversibleSequence([(Counting(3, 3), Counting(3, 3))])
    sum(y.sum() for y in model(torch.ones(3), torch.ones(3))).backward()
    assert [net.calls for pair in model.pairs for net in pair] == [2, 2]
