"""What a message says to do is done, word for word, and then the stage works."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.base.workspace import SPLITS
from tests.e2e.conftest import Project, cut_off, replace

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


def one_row_more(path: Path) -> None:
    """A manifest that counts a row which no file has."""
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if "rows" in manifest:
        manifest["rows"] += 1
    else:
        manifest["documents"]["train"] += 1
    replace(path, json.dumps(manifest).encode())


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
