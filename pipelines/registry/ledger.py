"""The ledger: who moved which champion, when and why, in lines that are only ever appended.

MLflow keeps no history of aliases, so this is the only one, and an alias can be restored
from it. Every line holds the hash of the line before it. The head (how many lines, the hash of
the last one, and the champions) is signed at every move and kept twice: beside the ledger, and
as a tag of the registered models in MLflow. So a line that was changed, removed, inserted or
cut off is found.
"""

import getpass
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.base.artifacts import write_text
from pipelines.base.errors import GateError, UserError
from pipelines.registry.evidence.envelopes import seal, statement, unseal
from pipelines.registry.evidence.keys import Trust, own_key, trust
from pipelines.registry.names import CHAMPION, MODELS, aliased
from pipelines.tracking.store import local_state, tracking_directory

PROMOTE = "promote"
ROLLBACK = "rollback"
TRUST = "trust"
FIRST = "0" * 64
LEDGER = "ledger"
HEAD_KIND = "urn:enigma-zh:attestation:ledger-head:v1"
# Of a registered model: the head as of the last move of that model.
HEAD_TAG = "ledger_head"
RESTORE = "restore the ledger and its head from a backup; nobody else may write there"
RESTORE_TAG = "restore the tag, or MLflow's database, from a backup; nobody else may write there"


@dataclass(frozen=True)
class Line:
    """A line that is ready to be appended.

    Args:
        text: With its line feed.
        head: Its signed head, as JSON.
        waiting: Earlier lines that a killed process has signed and not written.
    """

    text: str
    head: str
    waiting: str


def ledger_path() -> Path:
    """Return the ledger of the current MLflow store."""
    return local_state("promotions.jsonl")


def head_path() -> Path:
    """Return the file of the ledger's head: the signed envelope, and the last line."""
    return local_state("promotions.head.json")


def prepare(client: Any, entry: Mapping[str, Any], *, trust_unsigned: bool = False) -> Line:
    """Build and sign a line with the time and the user, before anything moves.

    Args:
        client: MLflow's.
        entry: `action`, `model`, `from`, `to`, `why`, `evidence_sha256`. The caller holds
            the lock of promotions.
        trust_unsigned: Accept a ledger that is older than signatures.

    Raises:
        UserError: If the ledger is damaged, or the entry cannot be written as a line.
        GateError: `ledger`, if MLflow's heads are over lines that are not in this ledger, as in
            a fresh clone: a new ledger would replace the one that they sign.
    """
    lines = _lines(trust_unsigned=trust_unsigned)
    _check_heads(_heads(client, trust()), lines)
    stamped = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": _user(),
        **entry,
        "previous_sha256": _hash(lines[-1]) if lines else FIRST,
    }
    text = json.dumps(stamped, ensure_ascii=False, allow_nan=False)
    entries = _parse([*lines, text])
    head = {"lines": len(entries), "champions": _champions_of(entries)}
    envelope = seal(statement({"promotions.jsonl": _hash(text)}, HEAD_KIND, head), own_key())
    return Line(f"{text}\n", json.dumps(envelope), "".join(f"{x}\n" for x in _unwritten(lines)))


def append(line: Line) -> None:
    """Append a line; it is on disk when this returns.

    The head is written first, with the line in it: a process that is killed between the two
    leaves a ledger that the next one completes.
    """
    head = {"envelope": json.loads(line.head), "line": line.text.removesuffix("\n")}
    write_text(head_path(), json.dumps(head, ensure_ascii=False, indent=2) + "\n")
    with ledger_path().open("a", encoding="utf-8") as stream:
        stream.write(line.waiting + line.text)
        stream.flush()
        os.fsync(stream.fileno())


def read(*, trust_unsigned: bool = False) -> list[dict[str, Any]]:
    """Return all entries, oldest first.

    Raises:
        UserError: If a line is not JSON, as after a power cut during a write.
        GateError: `ledger` or `signature`, if lines and head do not belong together.
    """
    return _parse(_lines(trust_unsigned=trust_unsigned))


def champions(entries: Sequence[Mapping[str, Any]], model: str) -> list[str]:
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


def recorded(client: Any, name: str) -> dict[str, Any] | None:
    """Return the present champion by the ledger; by the head in MLflow where there is no ledger.

    Args:
        client: MLflow's.
        name: `enigma-lm` or `enigma-flow`.

    Returns:
        `version` and `evidence_sha256`; None if no move is recorded.

    Raises:
        GateError: `ledger` or `signature`, if the ledger is not the one that was signed.
    """
    known = trust()
    heads = _heads(client, known)
    # Looked for without making the directory of a machine that only serves.
    if not (tracking_directory() / ".enigma" / "promotions.jsonl").is_file():
        found: dict[str, Any] | None = heads.get(name, {}).get("champions", {}).get(name)
        if found is None and heads:
            newest = max(heads.values(), key=lambda head: int(head["lines"]))
            found = newest["champions"].get(name)
        return found
    lines = _lines(known=known)
    _check_heads(heads, lines)
    return _champions_of(_parse(lines)).get(name)


def check_alias(client: Any, name: str) -> dict[str, Any] | None:
    """Compare the alias with the ledger.

    Returns:
        The present champion as `recorded` has it; None if there is none, or if it was deleted.

    Raises:
        GateError: `ledger`, if the alias is at another version.
    """
    record, got = recorded(client, name), aliased(client, name, CHAMPION)
    expected = None if record is None else record["version"]
    if got == expected:
        return record
    if got is None and not _exists(client, name, str(expected)):
        return None
    raise GateError(
        LEDGER,
        f"{name}: expected the alias at version {expected}, the ledger's champion, got {got}",
        "run `enigma history --restore` to move the alias back, then `enigma promote` for a move "
        "with its gates",
    )


def tag_head(client: Any, name: str, head: str) -> None:
    """Keep a signed head in MLflow, out of reach of someone who can write only here."""
    client.set_registered_model_tag(name, HEAD_TAG, head)


def _heads(client: Any, known: Trust) -> dict[str, dict[str, Any]]:
    """Return the heads that MLflow keeps, by model."""
    return {
        model.name: _open_head(
            model.tags[HEAD_TAG], known, f"tag {HEAD_TAG} of {model.name}", RESTORE_TAG
        )
        for name in MODELS
        for model in client.search_registered_models(f"name = '{name}'")
        if HEAD_TAG in model.tags
    }


def _check_heads(heads: Mapping[str, Mapping[str, Any]], lines: Sequence[str]) -> None:
    for model, head in heads.items():
        number = head["lines"]
        got = _hash(lines[number - 1]) if number <= len(lines) else f"{len(lines)} lines"
        if got != head["sha256"]:
            raise GateError(
                LEDGER,
                f"{ledger_path()}: MLflow has a signed head of {model} over line {number}, "
                f"{head['sha256']}, the ledger has {got}: lines were cut off or replaced, or are "
                "on another machine",
                f"copy {ledger_path().name} and {head_path().name} into {ledger_path().parent} "
                "from the machine that promotes, or from a backup",
            )


def _exists(client: Any, name: str, number: str) -> bool:
    return bool(client.search_model_versions(f"name = '{name}' and version_number = {number}"))


def _champions_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {}
    for model in MODELS:
        stack = champions(entries, model)
        moves = [e for e in entries if e["model"] == model and e["to"] == stack[-1]]
        if moves:
            evidence = moves[-1].get("evidence_sha256", {})
            found[model] = {
                "version": stack[-1],
                "evidence_sha256": {
                    name: evidence[name] for name in ("content", "statement") if name in evidence
                },
            }
    return found


def _lines(*, trust_unsigned: bool = False, known: Trust | None = None) -> list[str]:
    """Return the lines, completed by the one in the head, after a comparison with the head."""
    path = ledger_path()
    text = _read(path)
    # Only a line feed ends a line: JSON may hold U+2028 and its like.
    lines = text.removesuffix("\n").split("\n") if text else []
    _parse(lines)
    if not head_path().is_file():
        if lines and not trust_unsigned:
            raise GateError(
                LEDGER,
                f"{path}: expected the signed head {head_path().name} beside it, found none",
                "restore it from a backup; if the ledger is older than signatures and you know "
                "it, `enigma promote --trust-unsigned` signs it as it stands",
            )
        return lines
    last, head = _read_head(known or trust())
    number = head["lines"]
    if number == len(lines) + 1:
        lines.append(last)
        _parse(lines)
    if number != len(lines) or _hash(lines[-1]) != head["sha256"]:
        raise GateError(
            LEDGER,
            f"{path}: expected {number} lines up to the hash {head['sha256']}, as signed, got "
            f"{len(lines)} up to {_hash(lines[-1]) if lines else FIRST}",
            RESTORE,
        )
    return lines


def _unwritten(lines: Sequence[str]) -> list[str]:
    path = ledger_path()
    return list(lines[_read(path).count("\n") :])


def _read(path: Path) -> str:
    """Return the text of the ledger; a byte that is no UTF-8 changes the hash of its line."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_head(known: Trust) -> tuple[str, dict[str, Any]]:
    path = head_path()
    try:
        both = json.loads(path.read_text(encoding="utf-8"))
        line, envelope = both["line"], both["envelope"]
    except (ValueError, KeyError, TypeError) as error:
        raise GateError(
            LEDGER, f"{path}: expected the ledger's head, got: {error!r}", RESTORE
        ) from None
    head = _open_head(json.dumps(envelope), known, path.name, RESTORE)
    if _hash(line) != head["sha256"]:
        raise GateError(LEDGER, f"{path}: expected the line that was signed, got another", RESTORE)
    return line, head


def _open_head(text: str, known: Trust, called: str, fix: str) -> dict[str, Any]:
    stated = unseal(text, known, HEAD_KIND, called, fix=fix)
    return {**stated["predicate"], "sha256": stated["subject"][0]["digest"]["sha256"]}


def _parse(lines: Sequence[str]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    expected = FIRST
    for number, line in enumerate(lines, start=1):
        where = f"{ledger_path()}, line {number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            last = number == len(lines)
            raise UserError(
                f"{where}: expected JSON, got {line[:60]!r} ({error})",
                "remove that line by hand; the others are intact" if last else RESTORE,
            ) from None
        if not isinstance(entry, dict):
            raise GateError(LEDGER, f"{where}: expected a JSON object, got {line[:60]!r}", RESTORE)
        if entry.get("previous_sha256") != expected:
            raise GateError(
                LEDGER,
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
