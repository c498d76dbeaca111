"""The settings of a coupling: made in one place, and refused there."""

import pytest

from enigma.bijections.machine import Enigma
from enigma.couplings.settings import COUPLINGS, CouplingOptions, CouplingSettings
from enigma.rev_block import RevBlock

OTHERS = {
    "hidden_channels": 5,
    "num_hidden_layers": 2,
    "activation": "silu",
    "normalise": False,
    "kernel_size": 3,
    "bias": True,
    "residual": True,
    "num_bins": 4,
    "bound": 3.0,
    "context_features": 2,
}


def test_every_field_but_the_kind_is_an_option_and_a_published_keyword():
    fields = set(CouplingSettings.__dataclass_fields__)
    assert fields == {"kind", *CouplingOptions.__annotations__} == {"kind", "exact", *OTHERS}


@pytest.mark.parametrize("kind", COUPLINGS)
def test_settings_given_whole_are_those_made_of_options(kind):
    settings = CouplingSettings.of(kind, **OTHERS)
    by_name, whole = RevBlock(8, kind, **OTHERS), RevBlock(8, settings)
    assert str(by_name) == str(whole)
    assert by_name.f.transform == whole.f.transform
    machine = Enigma(8, 1, 1, 4, coupling=settings)
    assert machine.settings == Enigma(8, 1, 1, 4, coupling=kind, **OTHERS).settings
    assert Enigma(**machine.settings).settings == machine.settings
    assert Enigma(**machine.settings).coupling_settings == settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"coupling": "cubic"}, "coupling must be one of"),
        ({"coupling": "affine", "exact": True}, "only an additive coupling can be exact"),
        ({"coupling": "affine", "activation": "tanh"}, "activation must be one of"),
        ({"coupling": "affine", "num_hidden_layers": 0}, "at least one hidden layer"),
        ({"coupling": "affine", "context_features": -1}, "context_features must not be negative"),
        ({"coupling": CouplingSettings(), "bias": True}, r"got \['bias'\] beside them"),
    ],
)
def test_errors_say_what_was_expected(arguments, words):
    with pytest.raises(ValueError, match=words):
        CouplingSettings.of(**arguments)
