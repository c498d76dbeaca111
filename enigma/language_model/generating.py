"""Generation with weights that are constant, and a decoding step that can be compiled."""

from __future__ import annotations

from copy import copy
from typing import Any

from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from enigma.bijections.constant_weights import constant_weights
from enigma.language_model.prediction import Prediction

__all__ = ["Generating", "complete_cache"]


class Generating(GenerationMixin):  # type: ignore[misc]  # transformers ships no types
    """What `EnigmaForCausalLM` has beside the generation of transformers."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does; the weights must not change meanwhile.

        With `cache_implementation="static"` and a `compile_config` the decoding step is compiled,
        on any device: transformers by itself would ignore the configuration on a CPU.
        """
        with constant_weights():
            return super().generate(*args, **kwargs)

    def _valid_auto_compile_criteria(
        self, model_kwargs: dict[str, Any], generation_config: GenerationConfig
    ) -> bool:
        """Compile on a CPU too, if a configuration is given; transformers asks this."""
        if generation_config.compile_config is not None:
            asked = copy(generation_config.compile_config)
            asked._compile_all_devices = True  # noqa: SLF001 - there is no public switch
            generation_config.compile_config = asked
        valid: bool = super()._valid_auto_compile_criteria(model_kwargs, generation_config)
        return valid


def complete_cache(cache: Cache, model: Prediction) -> None:
    """Give a cache what a model needs beside the keys of each attention layer.

    The convolutions cache their inputs, the n-gram memory the rows of contexts, and the pointer ids
    and its keys.
    """
    while len(cache.layers) < model.num_key_slots:
        cache.layers.append(DynamicLayer())
    while len(cache.layers) < model.num_cache_slots:
        cache.layers.append(_same_kind(cache.layers[0]))


def _same_kind(layer: DynamicLayer | StaticLayer) -> DynamicLayer | StaticLayer:
    """Return an empty layer of a cache that is static, and can be compiled, if `layer` is."""
    return StaticLayer(layer.max_cache_len) if layer.is_compileable else DynamicLayer()
