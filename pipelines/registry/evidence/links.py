"""in-toto links: one statement per stage of `dvc.lock`, with its materials and products by hash."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipelines.base.artifacts import MANIFEST_NAME, read_manifest, sha256_file
from pipelines.registry.dvc_objects import DIRECTORY, md5_file
from pipelines.registry.evidence.envelopes import STATEMENT_TYPE, Json
from pipelines.registry.evidence.version import LINK_KIND


def stage_links(lock: Path, environment: Mapping[str, str]) -> dict[str, Json]:
    """Return a statement for every stage.

    DVC names content by MD5. Where the products are in the working directory, their files are
    named by SHA-256 as well: those of a data set by its manifest.

    Args:
        lock: A `dvc.lock`.
        environment: Commit and environment under which the stages are stated.
    """
    raw = YAML(typ="safe").load(lock.read_text(encoding="utf-8")) or {}
    return {
        name: {
            "_type": STATEMENT_TYPE,
            "subject": [*map(_product, stage.get("outs", [])), *_files(stage.get("outs", []))],
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


def _product(entry: Mapping[str, Any]) -> Json:
    resource, path = _resource(entry), Path(entry["path"])
    if path.is_file() and md5_file(path) == entry["md5"]:
        resource["digest"]["sha256"] = sha256_file(path)
    return resource


def _files(outs: list[Mapping[str, Any]]) -> Iterator[Json]:
    for out in outs:
        for name, digest in _hashes(Path(out["path"])):
            yield {"name": name, "digest": {"sha256": digest}}


def _hashes(path: Path) -> Iterator[tuple[str, str]]:
    if (path / MANIFEST_NAME).is_file():
        # A data set of many gigabytes has been hashed by the stage that made it.
        for entry in read_manifest(path)["files"]:
            yield f"{path}/{entry['path']}", entry["sha256"]
        yield f"{path}/{MANIFEST_NAME}", sha256_file(path / MANIFEST_NAME)
    elif path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            yield file.as_posix(), sha256_file(file)
