"""What a message says to do is done, word for word, and then the stage works."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipelines.base.workspace import SPLITS
from tests.e2e.conftest import Project

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

SMALL = {
    "ingest.source": "sources",
    "clean.split.validation_fraction": 0.25,
    "clean.split.test_fraction": 0.25,
    "tokenize.sequence_length": 64,
    "validate.max_drift_bits": 1.0,
    "validate.max_unk_rate": 1.0,
    **{f"validate.min_sequences.{split}": 1 for split in SPLITS},
}
HAN = range(0x4E00, 0x5E00)


def write_documents(path: Path, number: int, seed: int = 0) -> None:
    rng = random.Random(seed)
    texts = ["".join(map(chr, rng.choices(HAN, k=200))) for _ in range(number)]
    lines = [json.dumps({"id": f"{row}", "text": text}) for row, text in enumerate(texts)]
    path.write_text("\n".join(lines), encoding="utf-8")


def replace(path: Path, content: bytes) -> None:
    """Write another file: the old one may be a link into DVC's cache."""
    path.unlink()
    path.write_bytes(content)


def one_row_more(path: Path) -> None:
    """A manifest that counts a row which no file has."""
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if "rows" in manifest:
        manifest["rows"] += 1
    else:
        manifest["documents"]["train"] += 1
    replace(path, json.dumps(manifest).encode())


def cut_off(path: Path) -> None:
    replace(path, path.read_bytes()[:-10])


@pytest.fixture(scope="module")
def small(clone: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of forty documents, up to `decontaminate`."""
    project = clone.copy(tmp_path_factory.mktemp("small") / "enigma")
    project.set(SMALL)
    write_documents(project.path / "sources" / "all.jsonl", 40)
    project.run("dvc", "repro", "decontaminate")
    return project


@pytest.mark.parametrize(
    ("stage", "file", "damage", "remedies"),
    [
        ("clean", "raw/manifest.json", one_row_more, ["dvc repro --force ingest"]),
        ("tokenize", "documents/manifest.json", one_row_more, ["dvc repro --force clean"]),
        (
            "decontaminate",
            "tokens/train-00000.bin",
            cut_off,
            ["dvc checkout --force data/sanguo/tokens", "dvc repro"],
        ),
        (
            "validate",
            "documents/train.parquet",
            cut_off,
            [
                "dvc checkout --force --with-deps decontaminate",
                "dvc repro decontaminate",
            ],
        ),
    ],
)
def test_the_remedy_of_a_message_mends_the_stage(
    small: Project, stage: str, file: str, damage: Callable[[Path], None], remedies: list[str]
) -> None:
    path = small.path / "data" / "sanguo" / file
    for remedy in remedies:
        damage(path)
        failed = small.run("python", "-m", f"pipelines.{stage}", check=False)
        assert failed.returncode != 0
        assert remedy in re.findall("`(dvc [^`]+)`", failed.stdout)
        # Without a target it makes all that comes later as well.
        target = [stage] if remedy == "dvc repro" else []
        small.run(*remedy.split(), *target)
        small.run("python", "-m", f"pipelines.{stage}")


SAY = """
from pipelines.base.errors import UserError

for check in checks:
    try:
        check()
    except UserError as error:
        print(error)
"""

REGISTRY = """
from pathlib import Path

from pipelines.base.workspace import Workspace
from pipelines.registry.dvc_objects import (
    cache_directory,
    check_working_copy,
    hash_output,
    read_lock,
)
from pipelines.registry.material import lm_material

lm = read_lock(Path("dvc.lock"))["train"].outs[0]
checks = (
    lambda: lm_material(Workspace("sanguo")),
    lambda: check_working_copy(lm, hash_output(lm, cache_directory())),
)
"""


@pytest.mark.timeout(2400)
def test_the_remedy_of_the_registry_needs_no_later_stage(project: Project) -> None:
    lock = project.path / "dvc.lock"
    yaml = YAML()
    made = yaml.load(lock)
    for stage in ("train_flow", "sample_flow"):
        del made["stages"][stage]
    yaml.dump(made, lock)
    shutil.rmtree(project.path / "models" / "sanguo" / "flow")
    cut_off(project.path / "models" / "sanguo" / "lm" / "model.safetensors")
    said = project.run("python", "-c", REGISTRY + SAY).stdout
    remedies = re.findall("`(dvc checkout [^`]+)`", said)
    assert remedies == ["dvc checkout --force models/sanguo/lm"] * 2
    project.run(*remedies[0].split())
    assert project.run("python", "-c", REGISTRY + SAY).stdout == ""


REPORTS = """
from pipelines.base.artifacts import read_manifest
from pipelines.base.certificate import check_certificate
from pipelines.base.workspace import Workspace
from pipelines.registry.material import flow_material, lm_material
from pipelines.tracking.store import connect

there = Workspace("sanguo")
root = read_manifest(there.shards)["root"]
checks = (
    lambda: check_certificate(there.report("validate") / "certificate.json", root),
    lambda: lm_material(there),
    lambda: flow_material(connect(), there),
)
"""


@pytest.mark.timeout(2400)
def test_reports_of_other_data_or_models_are_made_again_by_their_remedies(project: Project) -> None:
    reports = project.path / "reports" / "sanguo"
    of_another = {
        "validate/certificate.json": "shards_root",
        "evaluate/evaluation.json": "weights_sha256",
        "sample_flow/metrics.json": "flow_weights_sha256",
    }
    for file, field in of_another.items():
        report = json.loads((reports / file).read_text(encoding="utf-8"))
        replace(reports / file, json.dumps({**report, field: 64 * "0"}).encode())
    said = project.run("python", "-c", REPORTS + SAY).stdout
    remedies = re.findall("`(dvc repro [^`]+)`", said)
    assert remedies == [f"dvc repro {file.split('/')[0]}" for file in of_another]
    for remedy in remedies:
        project.run(*remedy.split())
    assert project.run("python", "-c", REPORTS + SAY).stdout == ""


def test_a_source_elsewhere_is_read_again_by_force(small: Project, tmp_path: Path) -> None:
    """DVC does not look at it, as the page on data says, and names the command."""
    project = small.copy(tmp_path / "enigma")
    elsewhere = tmp_path / "elsewhere.jsonl"
    write_documents(elsewhere, 12)
    project.set({"ingest.source": str(elsewhere)})
    [remedy] = set(
        re.findall("`(dvc repro --force [^`]+)`", (project.path / "docs/data.md").read_text())
    )

    def rows() -> int:
        manifest = project.path / "data" / "sanguo" / "raw" / "manifest.json"
        return int(json.loads(manifest.read_text(encoding="utf-8"))["rows"])

    project.run("dvc", "repro", "ingest")
    write_documents(elsewhere, 15, seed=1)
    project.run("dvc", "repro", "ingest")
    assert rows() == 12
    project.run(*remedy.split())
    assert rows() == 15
