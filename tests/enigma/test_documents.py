"""The tutorial runs, and the documentation site builds without a warning."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_tutorial_runs_and_the_sentence_comes_back(tmp_path):
    script = REPOSITORY / "docs" / "tutorial_machine.py"
    done = subprocess.run(
        [sys.executable, script, "--steps", "2", "--out", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "same key  天下大势,分久必合,合久必分   (0 numbers differ in any bit)" in done.stdout
    assert sorted(picture.name for picture in tmp_path.iterdir()) == [
        "tutorial_flow.png",
        "tutorial_machine.png",
    ]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the optional group docs")
def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api" / "rotors" / "index.html").read_text(encoding="utf-8")
    assert "DynamicInvertibleConv1x1Stack" in page
