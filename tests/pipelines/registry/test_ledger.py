"""The ledger: lines with every character, a signed head, and every way to damage both."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.base.errors import GateError, UserError
from pipelines.registry import ledger
from pipelines.registry.names import LM
from pipelines.tracking.store import tracking_uri


def prepare(to: str, **why: object) -> ledger.Line:
    entry = {"action": "promote", "model": LM, "from": None, "to": to, "why": why}
    return ledger.prepare(MlflowClient(tracking_uri()), entry)


def move(to: str, **why: object) -> None:
    ledger.append(prepare(to, **why))


@pytest.fixture
def three(workspace: Path, tables: None) -> Path:
    """A ledger of three moves; its reasons hold what other readers take for the end of a line."""
    move("1")
    move("2", reason="worse\u2028see\u2029chat\x85\x0b\x0c\x1c\r\nand more")
    move("3")
    return ledger.ledger_path()


def test_a_reason_may_hold_every_character(three: Path) -> None:
    assert [entry["to"] for entry in ledger.read()] == ["1", "2", "3"]
    assert "\u2028see\u2029" in ledger.read()[1]["why"]["reason"]
    assert three.read_bytes().count(b"\n") == 3


def test_what_cannot_be_a_line_moves_nothing(three: Path) -> None:
    before = three.read_bytes()
    for bad in (float("nan"), "\ud800"):
        with pytest.raises(ValueError, match=r"JSON compliant|surrogates"):
            prepare("4", reason=bad)
    assert three.read_bytes() == before


def test_a_broken_line_is_named_and_its_remedy_helps(three: Path) -> None:
    with three.open("a", encoding="utf-8") as stream:
        stream.write('{"half')
    with pytest.raises(UserError, match="line 4: expected JSON") as refusal:
        ledger.read()
    assert "remove that line by hand" in refusal.value.fix
    three.write_bytes(three.read_bytes().removesuffix(b'{"half'))
    assert len(ledger.read()) == 3


@pytest.mark.parametrize("damaged", [b"5", b"[]", b"null", b"\xff", b'{"half'])
def test_a_line_before_the_last_comes_back_from_a_backup_alone(three: Path, damaged: bytes) -> None:
    """Without it the lines after it would have lost the one that they are chained to."""
    backup = three.read_bytes()
    first, _, last = backup.split(b"\n")[:-1]
    three.write_bytes(b"\n".join([first, damaged, last, b""]))
    with pytest.raises(UserError, match="line 2: expected") as refusal:
        ledger.read()
    assert "from a backup" in refusal.value.fix
    three.write_bytes(backup)
    assert len(ledger.read()) == 3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("changed", "expected the hash"),
        ("taken out", "expected the hash"),
        ("reordered", "expected the hash"),
        ("last changed", "as signed"),
        ("cut", "as signed"),
        ("replaced", "as signed"),
        ("one more", "as signed"),
        ("emptied", "as signed"),
    ],
)
def test_a_ledger_that_was_edited_is_refused(three: Path, damage: str, reason: str) -> None:
    lines = three.read_bytes().split(b"\n")[:-1]
    kept = {
        "changed": [lines[0], lines[1].replace(b'"to": "2"', b'"to": "7"'), lines[2]],
        "taken out": [lines[0], lines[2]],
        "reordered": [lines[1], lines[0], lines[2]],
        "last changed": [*lines[:2], lines[2].replace(b'"to": "3"', b'"to": "7"')],
        "cut": lines[:1],
        "replaced": [lines[0]],
        "one more": [*lines, _forged(lines[-1])],
        "emptied": [],
    }[damage]
    three.write_bytes(b"".join(line + b"\n" for line in kept))
    with pytest.raises(GateError, match=reason) as refusal:
        ledger.read()
    assert refusal.value.gate == "ledger"
    with pytest.raises(GateError, match=reason):
        move("4")
    assert "from a backup" in refusal.value.fix
    three.write_bytes(b"".join(line + b"\n" for line in lines))
    assert len(ledger.read()) == 3


def test_a_head_of_another_key_or_none_is_refused(three: Path, monkeypatch, tmp_path: Path) -> None:
    head = ledger.head_path()
    text = head.read_text(encoding="utf-8")
    head.unlink()
    with pytest.raises(GateError, match="expected the signed head"):
        ledger.read()
    assert len(ledger.read(trust_unsigned=True)) == 3
    for broken in ("{", '{"line": "x"}', text.replace('"sig": "M', '"sig": "N')):
        head.write_text(broken, encoding="utf-8")
        with pytest.raises(GateError, match="head") as refusal:
            ledger.read()
        assert "restore the ledger and its head from a backup" in refusal.value.fix
    head.write_text(text, encoding="utf-8")
    assert len(ledger.read()) == 3
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another user"))
    with pytest.raises(GateError, match="one of the trusted keys") as refusal:
        ledger.read()
    assert refusal.value.gate == "signature"


def test_a_process_killed_between_head_and_line_loses_nothing(three: Path) -> None:
    """The head holds the last line: the ledger is completed by the next move."""
    lines = three.read_bytes().split(b"\n")[:-1]
    three.write_bytes(b"".join(line + b"\n" for line in lines[:2]))
    assert [entry["to"] for entry in ledger.read()] == ["1", "2", "3"]
    move("4")
    assert [entry["to"] for entry in ledger.read()] == ["1", "2", "3", "4"]
    assert three.read_bytes().split(b"\n")[2] == lines[2]


def _forged(last: bytes) -> bytes:
    entry = {"action": "promote", "model": LM, "to": "9", "why": {}}
    text = last.decode()
    return json.dumps({**entry, "previous_sha256": ledger._hash(text)}).encode()
