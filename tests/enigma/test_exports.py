"""The package exports its public names, and loads nothing before one is used."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import enigma

PROGRAM = """
import sys
import enigma
assert not {"torch", "transformers", "scipy"} & set(sys.modules)
assert {"Enigma", "EnigmaFlow", "EnigmaForCausalLM"} <= set(dir(enigma))
from enigma import EnigmaFlow
assert "torch" in sys.modules and "transformers" not in sys.modules
from enigma.jacobian_logdet import EnigmaFlow as same
assert EnigmaFlow is same is enigma.EnigmaFlow
"""


def test_importing_enigma_imports_no_torch() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_a_type_checker_sees_what_is_exported() -> None:
    tree = ast.parse(Path(enigma.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert sorted(seen) == sorted(enigma.__all__)
    for name, module in seen.items():
        assert getattr(enigma, name) is getattr(import_module(str(module)), name)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'enigma' has no attribute 'Bombe'"):
        enigma.Bombe  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Bombe'"):
        from enigma import Bombe  # noqa: F401
