"""The flow: a density that integrates to 1, sampling, files."""

import copy
import json
from itertools import combinations

import onnxruntime
import pytest
import torch

from enigma.bijections.machine import Enigma
from enigma.couplings.network import CouplingNetwork
from enigma.couplings.settings import CouplingSettings
from enigma.jacobian_logdet import EnigmaFlow, jacobian_log_det, load_flow, save_flow


@pytest.fixture(autouse=True)
def seeded():
    """Draw the same initial weights in every run."""
    torch.manual_seed(0)


@pytest.mark.parametrize("prior", ["gaussian", "uniform"])
@pytest.mark.parametrize("coupling", ["affine", "spline", "affine-spline"])
def test_round_trip_and_log_det(prior, coupling, stirred):
    torch.manual_seed(0)
    flow = EnigmaFlow.build(6, 2, coupling=coupling, hidden_channels=16, prior=prior).double()
    # Little noise: where the logistic function rounds to 1 it has no inverse.
    stirred(flow, std=0.05)
    flow.standardise(3 + 2 * torch.randn(50, 6, dtype=torch.float64))
    x = 3 + 2 * torch.randn(4, 5, 6, dtype=torch.float64)
    z, log_det = flow(x)
    again, log_det_back = flow.inverse(z)
    assert log_det.shape == flow.log_prob(x).shape == (4, 5)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-9)
    reference = jacobian_log_det(lambda v: flow(v)[0], x[0, 0])
    assert abs(reference - log_det[0, 0]).item() <= 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["additive", "affine", "spline", "affine-spline"])
def test_the_density_integrates_to_one(coupling, stirred):
    torch.manual_seed(0)
    flow = EnigmaFlow.build(2, 2, coupling=coupling, hidden_channels=16).double()
    stirred(flow, std=0.05)
    step = 0.03
    line = torch.arange(-9, 9, step, dtype=torch.float64)
    with torch.no_grad():
        mass = flow.log_prob(torch.cartesian_prod(line, line)).exp().sum() * step**2
    assert abs(mass.item() - 1) < 0.01


def test_marginals_start_at_the_quantiles_of_training_data(stirred):
    torch.manual_seed(0)
    # Like pixels: nearly always between 0 and 1, and occasionally bright.
    data_ND = torch.rand(4000, 3) + 15 * (torch.rand(4000, 3) < 0.03)
    with_marginals = EnigmaFlow.build(3, 1, hidden_channels=8)
    without = EnigmaFlow.build(3, 1, hidden_channels=8, axes_matter=False)
    for flow in (with_marginals, without):
        flow.standardise(data_ND[:2000])
    gained = (
        with_marginals.log_prob(data_ND[2000:]).mean() - without.log_prob(data_ND[2000:]).mean()
    )
    assert gained > 1, "nats per vector, before any training"
    stirred(with_marginals, std=0.05)
    again, _ = with_marginals.inverse(with_marginals(data_ND)[0])
    torch.testing.assert_close(again, data_ND, rtol=0, atol=1e-3)


def test_a_vector_is_independent_of_its_neighbours(stirred):
    flow = stirred(EnigmaFlow.build(6, 1, hidden_channels=8).double())
    x = torch.randn(7, 6, dtype=torch.float64)
    torch.testing.assert_close(flow.log_prob(x)[3], flow.log_prob(x[3]), rtol=0, atol=1e-12)


def test_every_block_has_its_own_rotor():
    flow = EnigmaFlow.build(4, 3, hidden_channels=8)
    rotors = [each.part for each in flow.enigma.passes() if hasattr(each.part, "rotors")]
    assert len(rotors) == len(set(rotors)) == 6
    with pytest.raises(ValueError, match="own_rotors needs rotors_between_blocks"):
        Enigma(4, 3, positions=4, own_rotors=True)


def test_any_two_channels_are_moved_apart_by_some_block():
    enigma = EnigmaFlow.build(8, 2, hidden_channels=8).enigma
    halves, x = [], torch.arange(8.0)
    for stack in (enigma.rotors, *enigma.more_rotors)[:3]:
        x = stack.layers[0](x)
        halves.append(set(x[:4].tolist()))
    for first, second in combinations(range(8), 2):
        assert any((first in half) != (second in half) for half in halves)


def test_the_rotations_differ():
    enigma = EnigmaFlow.build(16, 2, hidden_channels=8, axes_matter=False).enigma
    starts = [stack.layers[0].weight() for stack in (enigma.rotors, *enigma.more_rotors)]
    assert len(starts) == 4
    for number, start in enumerate(starts):
        torch.testing.assert_close(start @ start.T, torch.eye(16))
        assert not any(torch.allclose(start, other, atol=0.1) for other in starts[:number])


def test_a_residual_network_adds_a_layers_output_to_its_input():
    torch.manual_seed(0)
    settings = CouplingSettings(
        num_hidden_layers=2, activation="silu", normalise=False, residual=True
    )
    network = CouplingNetwork(3, 2, 5, settings)
    torch.nn.init.normal_(network.out.weight)
    x = torch.randn(4, 3)
    first, second = network.hidden
    silu = torch.nn.functional.silu
    read = first(x)
    expected = network.out(silu(read + second(silu(read))))
    assert torch.allclose(network(x), expected)


def test_a_coupling_moves_a_half_even_where_the_other_is_zero():
    coupling = EnigmaFlow.build(4, 1, hidden_channels=8).enigma.blocks[0].f
    with torch.no_grad():
        coupling.network.out.bias.normal_()
    moved, _ = coupling.move(torch.ones(1, 2), torch.zeros(1, 2))
    assert not torch.equal(moved, torch.ones(1, 2))


def test_sampling_is_reproducible_and_has_the_requested_shape():
    flow = EnigmaFlow.build(4, 1, hidden_channels=8)
    draws = [flow.sample((2, 3), torch.Generator().manual_seed(1)) for _ in range(2)]
    assert draws[0].shape == (2, 3, 4)
    assert torch.equal(*draws)
    assert flow.sample(5).shape == (5, 4)
    assert flow.sample(num_samples=10).shape == (10, 4)
    assert flow.sample().shape == (4,)


@pytest.mark.parametrize("axes_matter", [True, False])
def test_files_restore_the_same_flow(tmp_path, stirred, axes_matter):
    flow = stirred(
        EnigmaFlow.build(
            4, 1, coupling="affine", prior="uniform", hidden_channels=8, axes_matter=axes_matter
        )
    )
    flow.standardise(torch.randn(9, 4))
    save_flow(flow, tmp_path / "flow")
    x = torch.randn(3, 4)
    assert torch.equal(load_flow(tmp_path / "flow").log_prob(x), flow.log_prob(x))
    assert sorted(p.name for p in (tmp_path / "flow").iterdir()) == [
        "flow.safetensors",
        "flow_config.json",
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_file_keeps_the_dtype(tmp_path, stirred, dtype):
    flow = stirred(EnigmaFlow.build(4, 1, hidden_channels=8, axes_matter=False)).to(dtype)
    save_flow(flow, tmp_path)
    again = load_flow(tmp_path, map_location=torch.device("cpu"))
    expected = {name: value.dtype for name, value in flow.state_dict().items()}
    assert {name: value.dtype for name, value in again.state_dict().items()} == expected
    assert again.scale.dtype == dtype
    if dtype == torch.float64:
        x = torch.randn(3, 4, dtype=dtype)
        assert torch.equal(again.log_prob(x), flow.log_prob(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no second device here")
def test_a_file_is_read_to_the_device_that_was_named(tmp_path):
    save_flow(EnigmaFlow.build(4, 1, hidden_channels=8), tmp_path)
    flow = load_flow(tmp_path, map_location="cuda")
    assert {value.device.type for value in flow.state_dict().values()} == {"cuda"}
    assert flow.sample(3).device.type == "cuda"


def test_a_file_from_before_there_were_marginals_loads_without_them(tmp_path):
    flow = EnigmaFlow.build(4, 1, hidden_channels=8, axes_matter=False)
    save_flow(flow, tmp_path)
    config = json.loads((tmp_path / "flow_config.json").read_text())
    del config["marginal_bins"]
    (tmp_path / "flow_config.json").write_text(json.dumps(config))
    assert load_flow(tmp_path).marginals is None


def test_errors_say_what_was_expected():
    flow = EnigmaFlow.build(4, 1, hidden_channels=8)
    with pytest.raises(ValueError, match="prior must be one of"):
        EnigmaFlow(flow.enigma, "cauchy")
    with pytest.raises(ValueError, match=r"at least 2 rows of 4, got \(3, 5\)"):
        flow.standardise(torch.zeros(3, 5))
    for empty in (torch.tensor(1.0), torch.zeros(5, 0)):
        with pytest.raises(ValueError, match="expected 0 context features, got an empty context"):
            flow.log_prob(torch.zeros(5, 4), empty)
    # Its standard deviation is a rounding error, not 0.
    with pytest.raises(ValueError, match="got channel 0 constant"):
        EnigmaFlow.build(1, 1, hidden_channels=4).standardise(torch.full((1000, 1), 0.1))
    with pytest.raises(ValueError, match="got channel 0 constant"):
        flow.standardise(torch.zeros(3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [20.0, -20.0, 200.0])
def test_a_uniform_prior_is_finite_far_away(dtype, far):
    """Where the logistic function rounds to 0 or 1 there was no way back."""
    flow = EnigmaFlow.build(2, 1, hidden_channels=8, prior="uniform").to(dtype)
    x = torch.full((3, 2), far, dtype=dtype, requires_grad=True)
    (z, log_det), log_prob = flow(x), flow.log_prob(x)
    again, log_det_back = flow.inverse(z)
    (slope,) = torch.autograd.grad(log_prob.sum(), x)
    for value in (z, log_det, log_prob, again, log_det_back, slope):
        assert bool(value.isfinite().all())
    assert bool(((z > 0) & (z < 1)).all())
    flow.prior = "gaussian"
    before, _ = flow(x)
    exact = -(before.abs() + 2 * torch.log1p((-before.abs()).exp())).sum(-1)
    torch.testing.assert_close(log_prob, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("function", ["log_prob", "inverse"])
@pytest.mark.parametrize("coupling", ["affine", "spline", "affine-spline"])
def test_the_second_derivatives_are_right(coupling, function, stirred):
    flow = EnigmaFlow.build(2, 1, coupling=coupling, hidden_channels=4).double()
    stirred(flow, std=0.2)
    x = torch.tensor([[0.3, -0.7], [-1.2, 0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(getattr(flow, function), x)


@pytest.mark.parametrize("function", ["log_prob", "inverse"])
def test_the_second_derivatives_of_the_published_flow_are_right(function, stirred):
    """With stepping rotors, norms and squared ReLUs, whose gradients are written by hand too."""
    flow = stirred(EnigmaFlow(Enigma(4, 1, num_rotors=2, positions=2)).double(), std=0.2)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(getattr(flow, function), x)


# torch 2.13 scripts its own formulas for `jacfwd`.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_transforms_of_torch_func_go_through_the_flow(stirred):
    flow = stirred(EnigmaFlow.build(2, 1, hidden_channels=4).double(), std=0.2)
    x = torch.tensor([[0.3, -0.7], [-1.2, 0.4], [0.1, 2.0]], dtype=torch.float64)
    expected = flow.log_prob(x)
    torch.testing.assert_close(torch.vmap(flow.log_prob)(x), expected, rtol=0, atol=1e-12)
    gradient = torch.autograd.functional.jacobian(flow.log_prob, x[0])
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        value = transform(flow.log_prob)(x[0])
        torch.testing.assert_close(value, gradient, rtol=0, atol=1e-11)
    hessian = torch.autograd.functional.hessian(flow.log_prob, x[0])
    value = torch.func.hessian(flow.log_prob)(x[0])
    torch.testing.assert_close(value, hessian, rtol=0, atol=1e-10)
    score = torch.vmap(torch.func.grad(flow.log_prob))(x)
    torch.testing.assert_close(score[0], gradient, rtol=0, atol=1e-11)


def test_gradients_per_sample_and_an_ensemble_by_functional_call(stirred):
    members = [stirred(EnigmaFlow.build(2, 1, hidden_channels=4).double(), seed=n) for n in (1, 2)]
    x = torch.tensor([[0.3, -0.7], [-1.2, 0.4]], dtype=torch.float64)

    def z(parameters, buffers, x):
        return torch.func.functional_call(members[0], (parameters, buffers), (x,))[0]

    stacked = torch.func.stack_module_state(members)
    outputs = torch.vmap(z, (0, 0, None))(*stacked, x)
    for output, member in zip(outputs, members, strict=True):
        torch.testing.assert_close(output, member(x)[0], rtol=0, atol=1e-12)
    weights, buffers = (
        dict(each) for each in (members[0].named_parameters(), members[0].named_buffers())
    )
    per_sample = torch.vmap(torch.func.grad(lambda p, v: z(p, buffers, v).sum()), (None, 0))(
        weights, x
    )
    members[0](x)[0].sum().backward()
    for name, parameter in members[0].named_parameters():
        torch.testing.assert_close(per_sample[name].sum(0), parameter.grad, rtol=0, atol=1e-10)


class Density(torch.nn.Module):
    """The log-density as a module, for an export."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x, context=None):
        return self.flow.log_prob(x, context)


class Samples(torch.nn.Module):
    """The way from the base to data."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, z, context=None):
        return self.flow.inverse(z, context)[0]


BATCH = torch.export.Dim("batch")


def inputs_and_shapes(count, features, dtype=torch.float32):
    generator = torch.Generator().manual_seed(count)
    widths = [4, *([features] if features else [])]
    inputs = tuple(torch.randn(count, width, generator=generator, dtype=dtype) for width in widths)
    return inputs, tuple({0: BATCH} for _ in inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "features"), [(Density, 3), (Samples, 0)])
def test_an_export_takes_any_batch(module, features, stirred):
    flow = EnigmaFlow.build(4, 1, hidden_channels=8, context_features=features).double()
    wrapped = module(stirred(flow)).eval()
    inputs, shapes = inputs_and_shapes(5, features, torch.float64)
    exported = torch.export.export(wrapped, inputs, dynamic_shapes=shapes).module()
    for count in (1, 5, 12):
        inputs, _ = inputs_and_shapes(count, features, torch.float64)
        torch.testing.assert_close(exported(*inputs), wrapped(*inputs), rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:# The axis name:UserWarning")
def test_onnx_runtime_gives_the_same_density_for_any_batch(tmp_path, stirred):
    flow = EnigmaFlow.build(4, 1, hidden_channels=8, context_features=3, prior="uniform")
    wrapped = Density(stirred(flow, std=0.05)).eval()
    inputs, shapes = inputs_and_shapes(5, 3)
    path = tmp_path / "flow.onnx"
    torch.onnx.export(wrapped, inputs, path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_inputs()]
    for count in (1, 5, 12):
        inputs, _ = inputs_and_shapes(count, 3)
        (log_prob,) = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
        torch.testing.assert_close(
            torch.from_numpy(log_prob), wrapped(*inputs).detach(), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("features", [0, 2])
def test_data_with_a_graph_leaves_no_graph_in_the_flow(d, features):
    """As when the data are the output of a network that is trained with the flow."""
    encoder = torch.nn.Linear(4, d + features)
    data_ND, context_NC = encoder(torch.randn(50, 4)).split((d, features), dim=-1)
    context_NC = context_NC if features else None
    flow = EnigmaFlow.build(d, 1, hidden_channels=8, context_features=features)
    flow.standardise(data_ND, context_NC)
    detached = EnigmaFlow.build(d, 1, hidden_channels=8, context_features=features)
    detached.standardise(data_ND.detach(), context_NC.detach() if features else None)
    for name, buffer in flow.named_buffers():
        assert not buffer.requires_grad, name
        assert torch.equal(buffer, detached.get_buffer(name)), name
    copy.deepcopy(flow)
    context_NC = torch.randn(9, features) if features else None
    for _ in range(2):
        flow.log_prob(torch.randn(9, d), context_NC).sum().backward()
    assert encoder.weight.grad is None
