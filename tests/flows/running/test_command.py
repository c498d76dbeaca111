"""A command's answer on stdout is kept apart from what it logs."""

import logging
import sys
from pathlib import Path

import pytest

from flows.running import command
from flows.running.checkout import Checkout
from flows.running.command import run_for_json

SCRIPT = """
import json, sys
print("12:00:00 INFO gate: figures", file=sys.stderr)
if sys.argv[1] != "silent":
    print(json.dumps([{"model": "曹", "outcome": sys.argv[1]}], ensure_ascii=False))
if sys.argv[1] == "refused":
    sys.exit("error: gate `x` refused")
"""


@pytest.mark.parametrize(
    ("outcome", "code", "answer"),
    [
        ("promoted", 0, [{"model": "曹", "outcome": "promoted"}]),
        ("refused", 1, [{"model": "曹", "outcome": "refused"}]),
        ("silent", 0, None),
    ],
)
def test_json_is_read_from_stdout_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str, code: int, answer: list | None
) -> None:
    monkeypatch.setattr(command, "get_run_logger", lambda: logging.getLogger(__name__))
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    checkout = Checkout(tmp_path, tmp_path, baseline="a" * 40, lock=-1)
    ended, got = run_for_json([sys.executable, "-c", SCRIPT, outcome], checkout)
    assert (ended.code, got) == (code, answer)
    assert ended.tail[0] == "12:00:00 INFO gate: figures"
    assert ended.tail[1:] == ["error: gate `x` refused"] * code
