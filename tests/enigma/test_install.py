"""A library user's environment: the wheel and what it declares, nothing else of the repository."""

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.metadata import parse_email
from packaging.requirements import Requirement

import enigma

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def declared(wheel: Path) -> list[Requirement]:
    """What the wheel itself requires, with and without extras."""
    with zipfile.ZipFile(wheel) as archive:
        (file,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata, _ = parse_email(archive.read(file))
    return [Requirement(line) for line in metadata["requires_dist"]]


def chosen(requirements: Iterable[Requirement], extras: set[str]) -> list[Requirement]:
    """Those that a set of extras (or none) brings."""
    names = extras or {""}
    return [
        wanted
        for wanted in requirements
        if not wanted.marker or any(wanted.marker.evaluate({"extra": name}) for name in names)
    ]


def needs(wheel: Path, extras: set[str]) -> set[str]:
    """The names of the distributions that the wheel brings."""
    waiting, seen = chosen(declared(wheel), extras), set()
    while waiting:
        wanted = waiting.pop()
        if (wanted.name, *sorted(wanted.extras)) not in seen:
            seen.add((wanted.name, *sorted(wanted.extras)))
            further = map(Requirement, distribution(wanted.name).requires or [])
            waiting += chosen(further, wanted.extras)
    return {name for name, *_ in seen}


class Environment:
    """An empty virtual environment, into which installed distributions are linked."""

    def __init__(self, path: Path) -> None:
        venv.create(path, with_pip=False, symlinks=True)
        self.python = path / "bin" / "python"
        scheme = {"base": str(path), "platbase": str(path)}
        self.packages = Path(sysconfig.get_path("purelib", vars=scheme))

    def link(self, name: str) -> None:
        """Add one distribution of the environment that runs the tests."""
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            target = self.packages / top
            if not target.exists():
                target.symlink_to(Path(str(distribution(name).locate_file(top))))

    def install(self, wheel: Path) -> None:
        """Install one wheel without its dependencies."""
        uv = [Path(sys.executable).with_name("uv"), "pip", "install", "--quiet", "--offline"]
        subprocess.run([*uv, "--no-deps", "--python", self.python, wheel], check=True)

    def run(self, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in (self.python, *arguments)],
            cwd=cwd,
            env={"PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module", params=[set(), {"hf"}], ids=["library", "hf"])
def environment(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    made = Environment(tmp_path_factory.mktemp("environment") / "venv")
    made.install(wheel)
    for name in needs(wheel, request.param):
        made.link(name)
    made.has_transformers = bool(request.param)  # type: ignore[attr-defined]
    return made


def test_the_wheel_holds_the_library_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"enigma", f"enigma_zh-{enigma.__version__}.dist-info"}


def test_the_library_needs_two_distributions(wheel: Path) -> None:
    assert {need.name for need in chosen(declared(wheel), set())} == {"torch", "safetensors"}


def test_every_public_name_but_those_of_the_adapter_loads(environment, tmp_path) -> None:
    adapter = [] if environment.has_transformers else ["EnigmaConfig", "EnigmaForCausalLM"]
    code = f"import enigma; [getattr(enigma, n) for n in set(enigma.__all__) - set({adapter})]"
    run = environment.run("-c", code, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


# One process for all of them, as most of its time goes into importing torch and transformers;
# each block still sees only the names that it makes itself.
RUN_EACH = """
import runpy, sys
for path in sys.argv[1:]:
    print(path)
    runpy.run_path(path)
"""


@pytest.mark.parametrize("document", ["README.md", "docs/library.md"])
def test_every_python_block_runs(environment, document, tmp_path) -> None:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    scripts = []
    for number, block in enumerate(blocks):
        if "transformers" in block and not environment.has_transformers:
            continue
        scripts.append(tmp_path / f"block_{number}.py")
        scripts[-1].write_text(block, encoding="utf-8")
    run = environment.run("-c", RUN_EACH, *scripts, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.split() == [str(script) for script in scripts]


def test_the_adapter_without_transformers_says_what_to_install(environment, tmp_path) -> None:
    if environment.has_transformers:
        pytest.skip("transformers is here")
    run = environment.run("-c", "from enigma import EnigmaForCausalLM", cwd=tmp_path)
    assert run.returncode == 1
    assert "pip install transformers" in run.stderr


def test_the_command_line_says_that_it_needs_the_repository(environment, tmp_path) -> None:
    run = environment.run("-m", "enigma", "generate", cwd=tmp_path)
    assert run.returncode == 1
    assert "clone the repository" in run.stderr
    assert "Traceback" not in run.stderr
