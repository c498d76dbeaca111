"""Figures that a report states: one that is missing, or no number, passes no comparison."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pipelines.language_model.scoring import Score, Span


def nested(values: Mapping[str, Any], *path: str) -> Any:
    """Return a nested value; None where a name is missing."""
    found: Any = values
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def number(values: Mapping[str, Any], *path: str) -> float:
    """Return a nested number; NaN, which passes no comparison, for anything else."""
    found = nested(values, *path)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return math.nan
    return float(found)


def bits_per_character(evaluation: Mapping[str, Any], *model: str) -> float:
    """Compute the bits per character of a model from the nats that an evaluation states.

    Args:
        evaluation: Its test says how many tokens and characters every model was judged on.
        model: Where it states the figures of the model.

    Returns:
        NaN where the nats or a count are missing.
    """
    counts = [number(evaluation, "test", field.name) for field in fields(Span)]
    if not all(map(math.isfinite, counts)):
        return math.nan
    span = Span(*map(int, counts))
    return Score(span, number(evaluation, *model, "loss_nats") * span.tokens).bits_per_character
