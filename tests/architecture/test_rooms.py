"""The rooms of the house and who may know whom (docs/architecture.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("enigma", "pipelines", "expectations", "flows")
SOURCES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))


def test_import_contracts_hold() -> None:
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_stay_readable(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 400, "split the file: 400 lines at most"
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "a module says what lives in it"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # Signature and docstring are reference, not logic: the body counts.
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                length = (node.end_lineno or 0) - body[0].lineno + 1
                assert length <= 50, f"{node.name}: {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_shell_and_no_pickle(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "shell":
            pytest.fail(f"{path.name}:{node.value.lineno}: subprocesses take argument lists")
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
            assert not names & {"pickle", "cloudpickle", "dill", "joblib"}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = {keyword.arg: keyword.value for keyword in node.keywords}.get("weights_only")
            assert isinstance(safe, ast.Constant)
            assert safe.value is True, f"{path.name}:{node.lineno}: weights_only=True"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_array_is_written_by_what_hides_a_full_disk(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            where = f"{path.name}:{node.lineno}: pipelines.base.artifacts.write_array"
            assert node.attr != "tofile", where
            assert ast.unparse(node) != "np.save", where


def test_no_forbidden_file_names() -> None:
    names = {path.name for path in SOURCES}
    assert "utils.py" not in names
    assert not [name for name in names if name.endswith("_v2.py")]
