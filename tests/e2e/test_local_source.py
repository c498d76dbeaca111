"""DVC notices when the bytes of a local source change."""

import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def write_documents(path: Path, text: str) -> None:
    """Ids carry the name of the file: none may occur twice."""
    lines = [json.dumps({"id": f"{path.name}-{number}", "text": text}) for number in range(3)]
    path.write_text("\n".join(lines), encoding="utf-8")


def test_a_changed_byte_runs_ingest_again(clone, tmp_path: Path) -> None:
    project = clone.copy(tmp_path / "enigma")
    project.set({"ingest.source": "sources"})
    elsewhere = tmp_path / "elsewhere.jsonl"
    write_documents(project.path / "sources" / "one.jsonl", "分久必合")
    (project.path / "sources" / "link.jsonl").symlink_to(elsewhere)

    def ingest() -> tuple[str, list[str]]:
        output = project.run("dvc", "repro", "--single-item", "ingest").stdout
        manifest = json.loads((project.path / "data/sanguo/raw/manifest.json").read_text())
        return output, [source["sha256"] for source in manifest["sources"]]

    write_documents(elsewhere, "話說天下大勢")
    _, before = ingest()
    assert "up to date" in project.run("dvc", "status", "ingest").stdout
    # Of the same length, and through a link.
    write_documents(elsewhere, "合久必分合久")
    assert "sources" in project.run("dvc", "status", "ingest").stdout
    output, after = ingest()
    assert "Running stage 'ingest'" in output
    assert len({*before, *after}) == 3
