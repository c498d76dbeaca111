"""Enigma: a reversible language model and a normalizing flow on top of it.

The public names can be imported from here. A name loads its module, and with it torch or
transformers, when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enigma.bijections.base import Bijection as Bijection
    from enigma.bijections.base import TokenContext as TokenContext
    from enigma.bijections.round_trip import core_round_trip_error as core_round_trip_error
    from enigma.causality import prove_causality as prove_causality
    from enigma.configuration_enigma import EnigmaConfig as EnigmaConfig
    from enigma.couplings.settings import CouplingSettings as CouplingSettings
    from enigma.density.distribution import FlowDistribution as FlowDistribution
    from enigma.invertible_conv1x1 import (
        DynamicInvertibleConv1x1Stack as DynamicInvertibleConv1x1Stack,
    )
    from enigma.invertible_conv1x1 import InvertibleConv1x1 as InvertibleConv1x1
    from enigma.invertible_conv1x1 import InvertibleConv1x1Stack as InvertibleConv1x1Stack
    from enigma.jacobian_logdet import EnigmaFlow as EnigmaFlow
    from enigma.jacobian_logdet import jacobian_log_det as jacobian_log_det
    from enigma.jacobian_logdet import load_flow as load_flow
    from enigma.jacobian_logdet import save_flow as save_flow
    from enigma.language_model.loading import load_lm as load_lm
    from enigma.language_model.memory.ngram_counts import NGramCounts as NGramCounts
    from enigma.language_model.memory.ngram_counts import count_ngrams as count_ngrams
    from enigma.language_model.presets import PRESETS as PRESETS
    from enigma.language_model.presets import build_preset as build_preset
    from enigma.language_model.sharding import shard as shard
    from enigma.model import Enigma as Enigma
    from enigma.model import EnigmaLM as EnigmaLM
    from enigma.modeling_enigma import EnigmaForCausalLM as EnigmaForCausalLM
    from enigma.plugboard import Plugboard as Plugboard
    from enigma.reflector import Reflector as Reflector
    from enigma.rev_block import RevBlock as RevBlock
    from enigma.reversible.sequence import ReversibleSequence as ReversibleSequence
    from enigma.simple_permutation import SimplePermutation as SimplePermutation

__version__ = "0.2.0"

_MODULES = {
    "Bijection": "bijections.base",
    "CouplingSettings": "couplings.settings",
    "DynamicInvertibleConv1x1Stack": "invertible_conv1x1",
    "Enigma": "model",
    "EnigmaConfig": "configuration_enigma",
    "EnigmaFlow": "jacobian_logdet",
    "EnigmaForCausalLM": "modeling_enigma",
    "EnigmaLM": "model",
    "FlowDistribution": "density.distribution",
    "InvertibleConv1x1": "invertible_conv1x1",
    "InvertibleConv1x1Stack": "invertible_conv1x1",
    "NGramCounts": "language_model.memory.ngram_counts",
    "PRESETS": "language_model.presets",
    "Plugboard": "plugboard",
    "Reflector": "reflector",
    "RevBlock": "rev_block",
    "ReversibleSequence": "reversible.sequence",
    "SimplePermutation": "simple_permutation",
    "TokenContext": "bijections.base",
    "build_preset": "language_model.presets",
    "core_round_trip_error": "bijections.round_trip",
    "count_ngrams": "language_model.memory.ngram_counts",
    "jacobian_log_det": "jacobian_logdet",
    "load_flow": "jacobian_logdet",
    "load_lm": "language_model.loading",
    "prove_causality": "causality",
    "save_flow": "jacobian_logdet",
    "shard": "language_model.sharding",
}

__all__ = list(_MODULES)

if not TYPE_CHECKING:  # a type checker would take every name for one of the package

    def __getattr__(name):  # noqa: ANN001, ANN202 - unchecked, see above
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name != "transformers":
                raise
            raise ImportError(
                f"{name}: expected the package transformers, found none; "
                "to fix this: run `pip install transformers`"
            ) from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
