"""Run a command for a task, show its output in the run's log, and say how it ended."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.running.checkout import Checkout
from flows.running.supervisor import run_supervised

TAIL_LINES = 200
REFUSED = "Refused"
BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")


def run_command(
    command: Sequence[str],
    checkout: Checkout,
    *,
    on_line: Callable[[str], None] = lambda _line: None,
    keep_open: Sequence[int] = (),
) -> tuple[int, list[str]]:
    """Run a command in a checkout under the supervisor.

    Args:
        command: Program and arguments.
        checkout: Where it runs.
        on_line: Called with every line as well.
        keep_open: File descriptors that live as long as anything of the command.

    Returns:
        The exit code and the last lines.
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
    )
    return code, list(tail)


def state_of(what: str, code: int, tail: Sequence[str]) -> State[Any]:
    """The state of a task whose command has ended.

    Args:
        what: What ran.
        code: Its exit code.
        tail: Its last lines.

    Returns:
        Completed; or Failed with the reason, under the name "Refused" where the command
        itself has given it, so that another try would not help.
    """
    if code == 0:
        return Completed()
    reason, explained = reason_of(tail, code)
    message = f"{what}: {reason}"
    get_run_logger().error("%s", message)
    return Failed(message=message, name=REFUSED) if explained else Failed(message=message)


def reason_of(lines: Iterable[str], code: int) -> tuple[str, bool]:
    r"""Find in a stage's output why it failed.

    Args:
        lines: The end of the output.
        code: The exit code.

    Returns:
        The reason, and whether the stage itself has given it (`error: ...`).

    Example:
        >>> reason_of(["error: no rows", "  to fix this: add some", "ERROR: failed"], 255)
        ('no rows\n  to fix this: add some', True)
        >>> reason_of(["loading", "ERROR: failed to run"], 255)
        ('exit code 255; its last words: loading | ERROR: failed to run', False)
    """
    said = list(lines)
    if busy := [line for line in said if any(words in line for words in BUSY)]:
        what = f"another DVC command is at work in this checkout ({busy[-1].strip()})"
        return f"{what}\n  to fix this: wait until it has ended, then start this run again", True
    starts = [number for number, line in enumerate(said) if line.startswith("error: ")]
    if not starts:
        return f"exit code {code}; its last words: {' | '.join(said[-5:])}", False
    block = [said[starts[-1]].removeprefix("error: ")]
    for line in said[starts[-1] + 1 :]:
        if line.startswith("ERROR: "):
            break
        block.append(line)
    return "\n".join(block), True
