"""The ledger: who moved which champion, when and why, in lines that are only ever appended.

MLflow keeps no history of aliases, so this is the only one, and an alias can be restored
from it. Every line holds the hash of the line before it, which reveals a line that was
changed, removed or inserted by hand.
"""

import getpass
import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.base.errors import UserError
from pipelines.tracking.store import local_state

PROMOTE = "promote"
ROLLBACK = "rollback"
OBSERVE = "observe"
FIRST = "0" * 64


def ledger_path() -> Path:
    """Return the ledger of the current MLflow store."""
    return local_state("promotions.jsonl")


def append(entry: dict[str, Any]) -> None:
    """Append a line with the time and the user; it is on disk when this returns.

    Args:
        entry: `action`, `model`, `from`, `to`, `why`, `evidence_sha256`. The caller holds
            the lock of promotions.

    Raises:
        UserError: If the ledger is damaged; then nothing is appended.
    """
    lines = _lines()
    _parse(lines)
    stamped = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": _user(),
        **entry,
        "previous_sha256": _hash(lines[-1]) if lines else FIRST,
    }
    line = json.dumps(stamped, ensure_ascii=False, allow_nan=False) + "\n"
    with ledger_path().open("a", encoding="utf-8") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def read() -> list[dict[str, Any]]:
    """Return all entries, oldest first.

    Raises:
        UserError: If a line is not JSON, as after a power cut during a write, or does not
            hold the hash of the line before it.
    """
    return _parse(_lines())


def champions(entries: Sequence[dict[str, Any]], model: str) -> list[str]:
    """Return the champions of a model from the first to the present one, rollbacks applied.

    Example:
        >>> moves = [("promote", "1"), ("promote", "2"), ("rollback", "1"), ("promote", "3")]
        >>> champions([{"action": a, "model": "m", "to": to} for a, to in moves], "m")
        ['1', '3']
    """
    stack: list[str] = []
    for entry in entries:
        if entry["model"] != model:
            continue
        if entry["action"] == ROLLBACK and entry["to"] in stack:
            del stack[stack.index(entry["to"]) + 1 :]
        elif stack[-1:] != [entry["to"]]:
            stack.append(entry["to"])
    return stack


def _lines() -> list[str]:
    path = ledger_path()
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _parse(lines: Sequence[str]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    expected = FIRST
    for number, line in enumerate(lines, start=1):
        where = f"{ledger_path()}, line {number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where}: expected JSON, got {line[:60]!r} ({error})",
                "remove that line by hand; the others are intact",
            ) from None
        if entry.get("previous_sha256") != expected:
            raise UserError(
                f"{where}: expected the hash {expected} of the line before, "
                f"got {entry.get('previous_sha256')}",
                "restore the file from a backup: a line was changed, removed or inserted",
            )
        entries.append(entry)
        expected = _hash(line)
    return entries


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run as a number without a name.
        return f"uid {os.getuid()}"
