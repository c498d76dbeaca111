"""The names of the registered models and aliases, and the search for versions."""

from pathlib import Path
from typing import Any

LM = "enigma-lm"
FLOW = "enigma-flow"
MODELS = (LM, FLOW)
CODE = {
    LM: Path(__file__).with_name("lm_pyfunc.py"),
    FLOW: Path(__file__).with_name("flow_pyfunc.py"),
}
CANDIDATE = "candidate"
CHAMPION = "champion"


def find_version(client: Any, name: str, tag: str, value: str) -> str | None:
    """Return the newest version whose tag has a value; None if there is none."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{tag}` = '{value}'")
    return max((str(v.version) for v in found), key=int, default=None)


def find_lm(client: Any, weights_sha256: str) -> str | None:
    """Return the version of `enigma-lm` with these weights; None if there is none."""
    return find_version(client, LM, "weights_sha256", weights_sha256)


def aliased(client: Any, name: str, alias: str) -> str | None:
    """Return the version an alias points at; None without the model or the alias."""
    for model in client.search_registered_models(f"name = '{name}'"):
        version = model.aliases.get(alias)
        return None if version is None else str(version)
    return None
