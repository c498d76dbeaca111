"""Run stages of `dvc.yaml` as Prefect tasks, and keep a record of the result.

DVC decides what has to run and in which order; a task is one stage under
`dvc repro --single-item`, so that the UI shows where the time goes and a retry begins
at the stage that died.
"""

import re
from collections import deque
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed

from flows.checkout import Checkout, Settings, open_checkout
from flows.record import keep_record
from flows.supervisor import run_supervised
from pipelines.errors import UserError

TAIL_LINES = 200
RETRY_DELAY_S = 10.0
REFUSED = "Refused"


def run_until(target: str, settings: Settings) -> State[Any]:
    """Bring a stage and everything before it up to date: the body of every flow.

    Args:
        target: The last stage.
        settings: Profile and overrides.

    Returns:
        The final state of the flow run; for a failure with a reason that can be read.
    """
    logger = get_run_logger()
    try:
        with open_checkout(Path.cwd(), settings, logger.info) as checkout:
            stages = stages_until(target, checkout)
            logger.info("%s, profile %s: %s", target, settings.profile, " -> ".join(stages))
            for stage in stages:
                state = run_stage.with_options(name=stage)(stage, checkout, return_state=True)
                if not state.is_completed():
                    return Failed(message=state.message)
            experiment = keep_record(target, settings.profile, stages, checkout)
    except UserError as error:
        logger.error("%s", error)  # noqa: TRY400
        return Failed(message=str(error))
    return Completed(message=f"experiment {experiment.name} ({experiment.commit[:7]})")


def _may_help(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    """Whether to try again: not where the stage has said what is wrong with its input."""
    return state.name != REFUSED


@task(
    cache_policy=NO_CACHE,
    retries=1,
    retry_delay_seconds=RETRY_DELAY_S,
    retry_condition_fn=_may_help,
    persist_result=False,
)
def run_stage(stage: str, checkout: Checkout) -> State[Any]:
    """Run one stage; a killed training goes on from its newest checkpoint.

    Args:
        stage: Its name in `dvc.yaml`.
        checkout: Where it runs.

    Returns:
        Completed; or Failed, under the name "Refused" where the stage itself said
        `error: ...`. What was not refused is tried again.
    """
    logger = get_run_logger()
    tail: deque[str] = deque(maxlen=TAIL_LINES)

    def hear(line: str) -> None:
        tail.append(line)
        # `prefect ... --watch` reads markup: "[/home]" would end it with an error.
        logger.info("%s", line.replace("[/", "[ /"))

    code = run_supervised(
        repro_command(stage),
        cwd=checkout.path,
        env=checkout.environment(),
        on_line=hear,
        keep_open=[checkout.lock],
    )
    if code == 0:
        return Completed()
    reason, explained = reason_of(tail, code)
    message = f"stage `{stage}`: {reason}"
    logger.error("%s", message)
    return Failed(message=message, name=REFUSED) if explained else Failed(message=message)


def repro_command(stage: str) -> list[str]:
    """The command that brings one stage up to date, its dependencies being so already.

    Example:
        >>> repro_command("train")
        ['dvc', 'repro', '--single-item', 'train']
    """
    return ["dvc", "repro", "--single-item", stage]


def stages_until(target: str, checkout: Checkout) -> list[str]:
    """The target and what it depends on, in an order in which they can run.

    Raises:
        UserError: If `dvc.yaml` is not valid or has no such stage.
    """
    return order_of(checkout.run("dvc", "dag", "--dot", target))


def order_of(dot: str) -> list[str]:
    r"""Read stages in order from `dvc dag --dot`.

    Example:
        >>> order_of('strict digraph  {\n"b";\n"a";\n"a" -> "b";\n}')
        ['a', 'b']
    """
    graph: dict[str, set[str]] = {}
    for line in dot.splitlines():
        names = re.findall(r'"([^"]*)"', line)
        for name in names:
            graph.setdefault(name, set())
        if len(names) == 2:
            graph[names[1]].add(names[0])
    return list(TopologicalSorter(graph).static_order())


def reason_of(lines: Iterable[str], code: int) -> tuple[str, bool]:
    r"""Find in a stage's output why it failed.

    Args:
        lines: The end of the output.
        code: The exit code.

    Returns:
        The reason, and whether the stage itself has given it (`error: ...`).

    Example:
        >>> reason_of(["error: no rows", "  to mend it: add some", "ERROR: failed"], 255)
        ('no rows\n  to mend it: add some', True)
        >>> reason_of(["loading", "ERROR: failed to run"], 255)
        ('exit code 255; its last words: loading | ERROR: failed to run', False)
    """
    said = list(lines)
    starts = [number for number, line in enumerate(said) if line.startswith("error: ")]
    if not starts:
        return f"exit code {code}; its last words: {' | '.join(said[-5:])}", False
    block = [said[starts[-1]].removeprefix("error: ")]
    for line in said[starts[-1] + 1 :]:
        if line.startswith("ERROR: "):
            break
        block.append(line)
    return "\n".join(block), True
