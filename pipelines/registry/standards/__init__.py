"""What other tools read of a version: four documents in published formats, from the same facts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.base.artifacts import write_json
from pipelines.registry.standards.bill_of_materials import bill_of_materials
from pipelines.registry.standards.croissant import croissant
from pipelines.registry.standards.facts import Facts
from pipelines.registry.standards.training_content import training_content

DOCUMENTS: Mapping[str, Callable[[Facts], dict[str, Any]]] = {
    "bom.cdx.json": bill_of_materials,
    "croissant.json": croissant,
    "training_content.json": training_content,
}


def write_standards(facts: Facts, directory: Path) -> None:
    """Write every document that the facts suffice for.

    Args:
        facts: What is known of the version.
        directory: Where to write; it exists.
    """
    for name, make in DOCUMENTS.items():
        if facts.raw or make is not croissant:
            write_json(directory / name, make(facts))
