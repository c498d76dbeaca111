"""Small models in which every branch counts: in a fresh model the branches are 0."""

import pytest
import torch

from enigma.configuration_enigma import EnigmaConfig
from enigma.model import EnigmaLM
from enigma.modeling_enigma import EnigmaForCausalLM

SIZES = {
    "d": 32,
    "num_rev_blocks": 2,
    "num_rotors": 2,
    "num_transformer_layers": 3,
    "num_heads": 4,
    "conv1x1_positions": 4,
}


@pytest.fixture
def stirred():
    """Return a function that puts noise into every parameter, so that nothing is the identity."""

    def stir(module, std=0.1, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(std * noise)
        return module

    return stir


@pytest.fixture
def make_lm(stirred):
    def make(**changes):
        torch.manual_seed(0)
        return stirred(EnigmaLM(**{"vocab_size": 120, **SIZES, **changes})).eval()

    return make


@pytest.fixture
def make_causal_lm(stirred):
    def make(**changes):
        torch.manual_seed(0)
        config = EnigmaConfig(**{"vocab_size": 120, **SIZES, **changes})
        return stirred(EnigmaForCausalLM(config)).eval()

    return make
