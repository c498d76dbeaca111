"""Run stages of `dvc.yaml` as Prefect tasks, and keep a record of the result.

DVC decides which stages run and in which order. A task is one stage under
`dvc repro --single-item`, so the UI shows the time of each stage, and a retry starts at the
stage that died.
"""

import re
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed

from flows.running.checkout import Checkout, Settings, open_checkout
from flows.running.command import REFUSED, run_command, state_of
from flows.running.progress import StageProgress
from flows.running.promotion import Promotion, promote_models
from flows.running.record import keep_record
from pipelines.base.errors import UserError

RETRY_DELAY_S = 10.0


def run_until(target: str, settings: Settings, promotion: Promotion | None = None) -> State[Any]:
    """Bring a stage and everything before it up to date: the body of every flow.

    Args:
        target: The last stage.
        settings: Profile and overrides.
        promotion: Register and promote the result as well.

    Returns:
        The final state of the flow run; a failure has a readable reason.
    """

    def work(checkout: Checkout) -> State[Any]:
        stages = stages_until(target, checkout)
        get_run_logger().info("profile %s, stages %s", settings.profile, " -> ".join(stages))
        for stage in stages:
            state = run_stage.with_options(name=stage)(
                stage,
                settings.profile,
                checkout,
                force=settings.refresh and stage == "ingest",
                return_state=True,
            )
            if not state.is_completed():
                return Failed(message=state.message)
        experiment = keep_record(target, settings.profile, stages, checkout)
        if promotion is not None:
            return promote_models(settings.profile, promotion, checkout)
        return Completed(message=f"experiment {experiment.name} ({experiment.commit[:7]})")

    return _in_checkout(settings, work)


def promote_outputs(settings: Settings, promotion: Promotion) -> State[Any]:
    """Register and promote the outputs in a profile's checkout: the body of flow `promote`.

    Args:
        settings: Profile and overrides that made the outputs.
        promotion: How candidates are judged.

    Returns:
        The final state of the flow run.
    """
    return _in_checkout(
        settings, lambda checkout: promote_models(settings.profile, promotion, checkout)
    )


def _in_checkout(settings: Settings, work: Callable[[Checkout], State[Any]]) -> State[Any]:
    """Work in the profile's checkout; a `UserError` fails the run with its reason."""
    logger = get_run_logger()
    try:
        with open_checkout(Path.cwd(), settings, logger.info) as checkout:
            return work(checkout)
    except UserError as error:
        logger.error("%s", error)  # noqa: TRY400
        return Failed(message=str(error))


def _may_help(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    """Return whether to try again: not if the stage said what is wrong with its input."""
    return state.name != REFUSED


@task(
    cache_policy=NO_CACHE,
    retries=1,
    retry_delay_seconds=RETRY_DELAY_S,
    retry_condition_fn=_may_help,
    persist_result=False,
)
def run_stage(stage: str, profile: str, checkout: Checkout, *, force: bool = False) -> State[Any]:
    """Run one stage; a killed training resumes from its newest checkpoint.

    Args:
        stage: Its name in `dvc.yaml`.
        profile: For the names of artifacts.
        checkout: Where it runs.
        force: Run it even if DVC sees no change.

    Returns:
        Completed; or Failed, under the name "Refused" if the stage itself said
        `error: ...`. Only other failures are tried again.
    """
    progress = StageProgress(stage, profile)
    ended = run_command(
        repro_command(stage, force=force),
        checkout,
        on_line=progress.hear,
        keep_open=[checkout.lock],
    )
    # Paths in the reason start at the checkout, which is not where the user is.
    where = checkout.path.relative_to(checkout.repository)
    return state_of(f"stage `{stage}` in {where}", ended)


def repro_command(stage: str, *, force: bool = False) -> list[str]:
    """Return the command that brings one stage up to date after its dependencies.

    Example:
        >>> repro_command("train")
        ['dvc', 'repro', '--single-item', 'train']
        >>> repro_command("ingest", force=True)
        ['dvc', 'repro', '--single-item', '--force', 'ingest']
    """
    return ["dvc", "repro", "--single-item", *["--force"] * force, stage]


def stages_until(target: str, checkout: Checkout) -> list[str]:
    """Return the target and its dependencies in an order in which they can run.

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
    for line in dot.split("\n"):
        names = re.findall(r'"([^"]*)"', line)
        for name in names:
            graph.setdefault(name, set())
        if len(names) == 2:
            graph[names[1]].add(names[0])
    return list(TopologicalSorter(graph).static_order())
