"""`enigma register` and `enigma promote`: what they print for people and for programs."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from pipelines.cli.gate_table import print_gates
from pipelines.registry.promote import Decision, RefusalError, promote
from pipelines.registry.register import register

TEXT = {
    "promoted": "promoted",
    "champion already": "the champion stays (it is this version)",
    "dry run": "the champion stays (dry run: every gate passes)",
}


def register_models(names: Sequence[str], *, as_json: bool) -> None:
    """Register models and print their versions.

    Args:
        names: Of the models, the language model first.
        as_json: Print a list of `{model, version}` instead of lines.

    Raises:
        UserError: If a file is missing, or the files do not belong together.
    """
    with _printed(as_json) as registered:
        for name in names:
            version = register(name)
            registered.append({"model": name, "version": version})
            _say(f"{name} version {version}", as_json)


def promote_models(
    names: Sequence[str],
    *,
    version: str | None,
    dry_run: bool,
    allow_tie: bool,
    trust_unsigned: bool,
    as_json: bool,
) -> None:
    """Promote models, up to the first refusal, and print the gates and what became of each.

    Args:
        names: Of the models, the language model first.
        version: Its number; None for the alias `candidate` of each model.
        dry_run: Check only.
        allow_tie: Accept a candidate that is not worse than the champion.
        trust_unsigned: Accept a version or a ledger that is older than signatures.
        as_json: Print a list of decisions instead of tables, also after a refusal.

    Raises:
        UserError: If there is no such version.
        GateError: At the first gate that refuses.
    """
    with _printed(as_json) as decisions:
        for name in names:
            try:
                decision = promote(
                    name, version, dry_run=dry_run, allow_tie=allow_tie,
                    trust_unsigned=trust_unsigned,
                )  # fmt: skip
            except RefusalError as error:
                decisions.append(error.decision.to_dict())
                _show(error.decision, as_json)
                raise
            decisions.append(decision.to_dict())
            _show(decision, as_json)
            _say(f"{name}: {TEXT[decision.outcome]}", as_json)


@contextmanager
def _printed(as_json: bool) -> Iterator[list[dict[str, Any]]]:
    """Print the list as JSON at the end, whether the body succeeds or not.

    What libraries print meanwhile goes to stderr (MLflow announces runs of a server).
    """
    rows: list[dict[str, Any]] = []
    if not as_json:
        yield rows
        return
    try:
        with redirect_stdout(sys.stderr):
            yield rows
    finally:
        sys.stdout.write(json.dumps(rows, ensure_ascii=False, indent=2) + "\n")


def _show(decision: Decision, as_json: bool) -> None:
    if not as_json:
        print_gates(f"{decision.model} version {decision.version}", decision.gates)


def _say(line: str, as_json: bool) -> None:
    if not as_json:
        sys.stdout.write(f"{line}\n")
