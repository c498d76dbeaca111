"""What tests of several rooms call by name (fixtures are in conftest.py)."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parent.parent
WIKI_SAMPLE = REPOSITORY.parent / "shared" / "data" / "wiki_zh_sample.parquet"


def change_params(path: Path, values: dict[str, Any]) -> None:
    """Change dotted names in a `params.yaml`, keeping its comments."""
    yaml = YAML()
    params = yaml.load(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        *parents, leaf = (
            name[1:].split(".")
            if name.startswith(".")
            else ["profiles", "sanguo", *name.split(".")]
        )
        node = params
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    with path.open("w", encoding="utf-8") as stream:
        yaml.dump(params, stream)
