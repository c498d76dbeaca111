"""The flow: a density that integrates to 1, sampling, files."""

import json
from itertools import combinations

import pytest
import torch

from enigma.bijections.machine import Enigma
from enigma.couplings.network import CouplingNetwork
from enigma.couplings.settings import CouplingSettings
from enigma.jacobian_logdet import EnigmaFlow, jacobian_log_det, load_flow, save_flow


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
    with pytest.raises(ValueError, match="got channel 0 constant"):
        flow.standardise(torch.zeros(3, 4))
