"""The README's example and the tutorial run, and what the documents name exists."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipelines.cli.commands import app

REPOSITORY = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.zh-CN.md")
DOCUMENTS = (
    *READMES,
    "CONTRIBUTING.md",
    *(str(path.relative_to(REPOSITORY)) for path in sorted((REPOSITORY / "docs").rglob("*.md"))),
)
COMMANDS = {command.callback.__name__ for command in app.registered_commands if command.callback}
ROOMS = "benchmarks|deploy|docs|enigma|expectations|flows|pipelines|tests"


def fenced(document: str, language: str) -> list[str]:
    """The code blocks of a language in a document."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", READMES)
def test_the_example_of_the_readme_runs_in_eight_lines(document):
    (example,) = fenced(document, "python")
    assert len([line for line in example.splitlines() if line]) == 8
    names: dict[str, object] = {}
    exec(compile(example, document, "exec"), names)
    assert names["logits"].shape == (1, 16, 21128)
    assert names["log_density"].shape == (16,)


def test_both_readmes_give_the_same_code_and_commands():
    for language in ("python", "console"):
        english, chinese = (
            [re.sub(r"\s*#.*", "", block) for block in fenced(document, language)]
            for document in READMES
        )
        assert english == chinese


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_paths_and_links_in_a_document_exist(document):
    path = REPOSITORY / document
    text = path.read_text(encoding="utf-8")
    modules = re.findall(rf"python -m ((?:{ROOMS})(?:\.\w+)+)", text)
    files = {f"{module.replace('.', '/')}.py" for module in modules}
    files |= set(re.findall(rf"(?<![\w./-])(?:{ROOMS})/[\w./-]*\w", text))
    missing = {name for name in files if not (REPOSITORY / name).exists()}
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    commands = re.findall(r"^enigma ([a-z]+)", "".join(fenced(document, "console")), re.MULTILINE)
    missing |= {name for name in commands if name not in COMMANDS}
    missing |= {link for link in links if not (path.parent / link).exists()}
    assert not missing


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


def test_every_decision_has_a_place_on_the_site():
    """The build says so too, where mkdocs is installed."""
    places = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    records = sorted((REPOSITORY / "docs" / "adr").glob("0*.md"))
    assert not [record.name for record in records if f"- adr/{record.name}" not in places]


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
