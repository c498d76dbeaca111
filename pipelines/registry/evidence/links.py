"""in-toto links: one statement per stage of `dvc.lock`, with its materials and products by hash."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipelines.base.artifacts import MANIFEST_NAME, read_manifest, sha256_file
from pipelines.registry.dvc_objects import DIRECTORY
from pipelines.registry.evidence.envelopes import STATEMENT_TYPE, Json
from pipelines.registry.evidence.version import LINK_KIND


def stage_links(
    lock: Path, environment: Mapping[str, str], made: Mapping[str, str]
) -> dict[str, Json]:
    """Return a statement for every stage.

    DVC names content by MD5. Files that were found to be as their stage made them are named by
    SHA-256 as well, and so are those of a data set in the working directory, by its manifest.

    Args:
        lock: A `dvc.lock`.
        environment: Commit and environment under which the stages are stated.
        made: The SHA-256 of files that are as the lock says, by path.
    """
    raw = YAML(typ="safe").load(lock.read_text(encoding="utf-8")) or {}
    return {
        name: {
            "_type": STATEMENT_TYPE,
            "subject": [
                product for out in stage.get("outs", []) for product in _products(out, made)
            ],
            "predicateType": LINK_KIND,
            "predicate": {
                "name": name,
                "command": [stage["cmd"]],
                "materials": [_resource(dep) for dep in stage.get("deps", [])],
                "byproducts": {},
                "environment": {**environment, "parameters": stage.get("params", {})},
            },
        }
        for name, stage in (raw.get("stages") or {}).items()
    }


def _resource(entry: Mapping[str, Any]) -> Json:
    directory = "/" if str(entry["md5"]).endswith(DIRECTORY) else ""
    return {
        "name": f"{entry['path']}{directory}",
        "digest": {"md5": str(entry["md5"]).removesuffix(DIRECTORY)},
    }


def _products(entry: Mapping[str, Any], made: Mapping[str, str]) -> Iterator[Json]:
    resource, path = _resource(entry), str(entry["path"])
    if path in made:
        resource["digest"]["sha256"] = made[path]
    yield resource
    files = {name: digest for name, digest in made.items() if name.startswith(f"{path}/")}
    for name, digest in (files or _data_set(Path(path))).items():
        yield {"name": name, "digest": {"sha256": digest}}


def _data_set(path: Path) -> dict[str, str]:
    """Name the files of a data set, which has been hashed by the stage that made it."""
    if not (path / MANIFEST_NAME).is_file():
        return {}
    files = {f"{path}/{entry['path']}": entry["sha256"] for entry in read_manifest(path)["files"]}
    return {**files, f"{path}/{MANIFEST_NAME}": sha256_file(path / MANIFEST_NAME)}
