"""The three published sizes of the language model, and their parameters by part."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from enigma.model import EnigmaLM

__all__ = ["PRESETS", "build_preset", "count_parameters"]

_COMMON = {"vocab_size": 21128, "num_rotors": 4, "conv1x1_positions": 16, "max_len": 256}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "768-wide-12-layer": MappingProxyType(
            {
                **_COMMON,
                "d": 768,
                "num_transformer_layers": 12,
                "num_heads": 12,
                "num_rev_blocks": 6,
            }
        ),
        "512-wide-8-layer": MappingProxyType(
            {**_COMMON, "d": 512, "num_transformer_layers": 8, "num_heads": 8, "num_rev_blocks": 4}
        ),
        "512-wide-6-layer": MappingProxyType(
            {**_COMMON, "d": 512, "num_transformer_layers": 6, "num_heads": 8, "num_rev_blocks": 4}
        ),
    }
)
"""Keyword arguments of `EnigmaLM` (and of `EnigmaConfig`) by name."""


def build_preset(name: str, **changes: Any) -> EnigmaLM:
    """Make a language model of a published size.

    Args:
        name: one of `PRESETS`.
        **changes: keyword arguments of `EnigmaLM` that replace the preset's.

    Raises:
        ValueError: for an unknown name.

    Examples:
        >>> build_preset("512-wide-6-layer", d=64, vocab_size=100).d
        64
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    return EnigmaLM(**{**PRESETS[name], **changes})


def count_parameters(settings: Mapping[str, Any]) -> dict[str, int]:
    """Count the parameters of an `EnigmaLM` by part, without allocating them.

    Args:
        settings: keyword arguments of `EnigmaLM`.

    Returns:
        Numbers of embedding (with the tied head), attention layers, rotors, reversible blocks,
        the rest, and their total.

    Examples:
        >>> count_parameters(PRESETS["512-wide-6-layer"])["rotors"] == 4 * 512**2
        True
    """
    with torch.device("meta"):
        lm = EnigmaLM(**settings)
    total = sum(p.numel() for p in lm.parameters())
    parts = {
        "embedding": lm.embedding,
        "attention layers": lm.layers,
        "rotors": lm.core.rotors,
        "reversible blocks": lm.core.blocks,
    }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return {**counts, "rest": total - sum(counts.values()), "total": total}
