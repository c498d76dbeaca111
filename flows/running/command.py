"""Run a command for a task, show its output in the run's log, and say how it ended."""

import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.running.checkout import Checkout
from flows.running.supervisor import run_supervised

TAIL_LINES = 200
REFUSED = "Refused"
BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        code: Its exit code.
        tail: Its last lines.
    """

    code: int
    tail: Sequence[str]


def run_command(
    command: Sequence[str],
    checkout: Checkout,
    *,
    on_line: Callable[[str], None] = lambda _line: None,
    keep_open: Sequence[int] = (),
    stdout: int | None = None,
) -> Ended:
    """Run a command in a checkout under the supervisor.

    Args:
        command: Program and arguments.
        checkout: Where it runs.
        on_line: Called with every line as well.
        keep_open: File descriptors that stay open as long as any process of the command.
        stdout: File descriptor that receives stdout; None to show it with stderr.
    """
    logger = get_run_logger()
    tail: deque[str] = deque(maxlen=TAIL_LINES)

    def hear(line: str) -> None:
        tail.append(line)
        # `prefect ... --watch` reads markup: "[/home]" would end it with an error.
        logger.info("%s", line.replace("[/", "[ /"))
        on_line(line)

    code = run_supervised(
        command,
        cwd=checkout.path,
        env=checkout.environment(),
        on_line=hear,
        keep_open=keep_open,
        stdout=stdout,
    )
    return Ended(code, list(tail))


def run_for_json(command: Sequence[str], checkout: Checkout) -> tuple[Ended, Any]:
    """Run a command that prints JSON and nothing else to stdout.

    Returns:
        How it ended, and what it printed; None where it printed nothing.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        ended = run_command(command, checkout, stdout=printed.fileno())
        printed.seek(0)
        text = printed.read()
    return ended, json.loads(text) if text.strip() else None


def state_of(what: str, ended: Ended) -> State[Any]:
    """Return the state of a task whose command has ended.

    Args:
        what: What ran.
        ended: How it ended.

    Returns:
        Completed; or Failed with the reason, under the name "Refused" where the command
        itself gave the reason, so another try would not help.
    """
    if ended.code == 0:
        return Completed()
    reason, explained = reason_of(ended.tail, ended.code)
    message = f"{what}: {reason}"
    get_run_logger().error("%s", message)
    return Failed(message=message, name=REFUSED) if explained else Failed(message=message)


def reason_of(lines: Iterable[str], code: int) -> tuple[str, bool]:
    r"""Find in the output of a stage why it failed.

    Args:
        lines: The end of the output.
        code: The exit code.

    Returns:
        The reason, and whether the stage itself gave it (`error: ...`).

    Example:
        >>> reason_of(["error: no rows", "  to fix this: add some", "ERROR: failed"], 255)
        ('no rows\n  to fix this: add some', True)
        >>> reason_of(["loading", "ERROR: failed to run"], 255)
        ('exit code 255; last lines: loading | ERROR: failed to run', False)
    """
    said = list(lines)
    if busy := [line for line in said if any(words in line for words in BUSY)]:
        what = f"another DVC command is running in this checkout ({busy[-1].strip()})"
        return f"{what}\n  to fix this: wait until it has ended, then start this run again", True
    starts = [number for number, line in enumerate(said) if line.startswith("error: ")]
    if not starts:
        return f"exit code {code}; last lines: {' | '.join(said[-5:])}", False
    block = [said[starts[-1]].removeprefix("error: ")]
    for line in said[starts[-1] + 1 :]:
        if line.startswith("ERROR: "):
            break
        block.append(line)
    return "\n".join(block), True
