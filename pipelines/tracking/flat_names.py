"""Nested settings as MLflow stores parameters and tags: dotted names and text."""

from collections.abc import Mapping
from typing import Any

# MLflow's limit for a parameter.
MAX_PARAM_CHARACTERS = 6000


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn nested settings into dotted names and text, as MLflow stores them.

    Example:
        >>> flatten({"train": {"epochs": 2, "seed": None}})
        {'train.epochs': '2', 'train.seed': 'None'}
    """
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = str(value)[:MAX_PARAM_CHARACTERS]
    return flat
