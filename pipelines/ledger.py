"""Who moved which champion, when and why: lines that are only ever appended.

MLflow keeps no history of aliases, so this is the only one.
"""

import getpass
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.tracking import local_state


def ledger_path() -> Path:
    """The ledger of the MLflow store in use."""
    return local_state("promotions.jsonl")


def append(entry: dict[str, Any]) -> None:
    """Add a line with the time and the user; it is on the disk when this returns."""
    stamped = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "who": _user(), **entry}
    line = json.dumps(stamped, ensure_ascii=False, allow_nan=False) + "\n"
    with ledger_path().open("a", encoding="utf-8") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def read() -> list[dict[str, Any]]:
    """All entries, oldest first.

    Raises:
        UserError: If a line is not JSON, as after a power cut in the middle of a write.
    """
    path = ledger_path()
    if not path.is_file():
        return []
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: expected JSON, came {line[:60]!r} ({error})",
                "take that line out by hand; the others are whole",
            ) from None
    return entries


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run as a number without a name.
        return f"uid {os.getuid()}"
