"""Streams and gradients of a small model, measured as those of a trained one."""

import pytest
import torch

from benchmarks.enigma.trained_streams import differences, gradients, sizes
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM


@pytest.fixture
def model() -> EnigmaForCausalLM:
    torch.manual_seed(0)
    config = EnigmaConfig(vocab_size=50, d=16, num_heads=2, num_transformer_layers=2, max_len=12)
    made = EnigmaForCausalLM(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def test_the_sizes_are_those_of_what_the_machine_maps(model: EnigmaForCausalLM) -> None:
    ids_BL = torch.randint(50, (2, 12))
    streams = []
    with torch.no_grad(), model.lm.core.register_forward_hook(lambda *x: streams.append(x)):
        model.lm(ids_BL, head=False)
    [(_, (entering, *_), leaving)] = streams
    expected = {"entering": entering, "leaving": leaving}
    assert sizes(model, ids_BL) == {
        name: (pytest.approx(float(x.square().mean() ** 0.5)), float(x.abs().max()))
        for name, x in expected.items()
    }


def test_gradients_of_the_two_modes_differ_by_rounding(model: EnigmaForCausalLM) -> None:
    ids_BL = torch.randint(50, (2, 12))
    plain = gradients(model, ids_BL, "plain")
    apart = differences(gradients(model, ids_BL, "reversible"), plain)
    assert 0 < apart["all parameters"] < apart["the worst parameter"] < 1e-4
    assert differences(plain, plain) == {"all parameters": 0.0, "the worst parameter": 0.0}
    name = max(plain, key=lambda name: plain[name].numel())
    planted = plain | {name: 2 * plain[name]}
    assert differences(planted, plain)["the worst parameter"] == pytest.approx(1.0)
