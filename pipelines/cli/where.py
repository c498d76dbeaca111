"""`enigma where`: the places of runs, reports and plots, and the registered versions."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.base.workspace import Workspace
from pipelines.params import load_params
from pipelines.registry.evidence.keys import key_path, trust
from pipelines.tracking.store import connect, tracking_uri
from pipelines.tracking.uris import shown_uri


def show_places(names: Sequence[str]) -> None:
    """Print where everything is.

    Args:
        names: The registered models to list.

    Raises:
        UserError: If the MLflow store cannot be reached.
    """
    client = connect()
    workspace = Workspace(load_params().name)
    uri = shown_uri(tracking_uri())
    console = Console(soft_wrap=True, highlight=False)
    view = (
        uri
        if uri.startswith("http")
        else f"mlflow ui --backend-store-uri {shlex.quote(uri)} -h 127.0.0.1"
    )
    docs = workspace.report("validate")
    lines = {
        "MLflow": view,
        "Data report": _found(docs / "index.html"),
        "Data Docs": _found(docs / "data_docs" / "index.html"),
        "Data analysis": _found(workspace.report("analyze") / "index.html", "enigma analyze"),
        **{
            f"Plots of {stage}": _found(workspace.report(stage) / "figures")
            for stage in ("train", "evaluate", "sample_flow")
        },
        "Signing key": _found(key_path(), "enigma register"),
        "Trusted keys": str(trust()),
        "Prompt": 'enigma generate "却说曹操" --max-new-tokens 64',
    }
    for name, value in lines.items():
        console.print(Text(f"{name}: {value}"))
    console.print(_versions(client, names))


def _found(path: Path, command: str = "dvc repro") -> str:
    return str(path.resolve()) if path.exists() else f"{path} (not made yet: `{command}`)"


def _versions(client: Any, names: Sequence[str]) -> Table:
    """Return a table of the registered versions with their aliases."""
    table = Table("model", "version", "aliases", "profile", "figures", "commit")
    for name in names:
        aliases: dict[str, list[str]] = {}
        for model in client.search_registered_models(f"name = '{name}'"):
            for alias, number in model.aliases.items():
                aliases.setdefault(str(number), []).append(alias)
        versions = client.search_model_versions(f"name = '{name}'")
        for version in sorted(versions, key=lambda v: int(v.version)):
            tags, number = version.tags, str(version.version)
            row = (
                name, number, ", ".join(sorted(aliases.get(number, []))),
                tags.get("profile", ""), _figures(tags), tags.get("git_commit", "")[:7],
            )  # fmt: skip
            # Text: tags are anybody's to set, and read as no markup.
            table.add_row(*map(Text, row))
    return table


def _figures(tags: Mapping[str, str]) -> str:
    if "bits_per_character" in tags:
        return f"{tags['bits_per_character'][:6]} bits per character"
    return f"{tags.get('test_nll_nats_per_dim', '')[:6]} nats per dimension"
