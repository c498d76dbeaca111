"""Register and promote the models of a checkout, as tasks of a flow."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict

from flows.running.checkout import Checkout
from flows.running.command import run_command, state_of
from flows.running.notify import notify

MODELS = ("enigma-lm", "enigma-flow")
# As a module: so the code is that of the checkout, as with the stages.
ENIGMA = (sys.executable, "-m", "pipelines.cli")


class Promotion(BaseModel):
    """How candidates are judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    allow_tie: bool = False
    dry_run: bool = False


def promote_models(profile: str, promotion: Promotion, checkout: Checkout) -> State[Any]:
    """Register both models, and promote each if its gates hold.

    Args:
        profile: Whose models.
        promotion: How.
        checkout: Where they are.

    Returns:
        Completed, with what became of each; Failed with the reason at the first refusal.
    """
    outcomes = []
    for name in MODELS:
        registered = register_model.with_options(name=f"register {name}")(
            name, checkout, return_state=True
        )
        if not registered.is_completed():
            return Failed(message=registered.message)
        version = str(registered.message)
        promoted = promote_model.with_options(name=f"promote {name}")(
            name, version, promotion, checkout, return_state=True
        )
        if not promoted.is_completed():
            return Failed(message=promoted.message)
        outcomes.append(f"{name} {version}: {promoted.message}")
        if promoted.message == PROMOTED:
            text = f"{name} version {version} of profile {profile} is the new champion"
            notify(text, get_run_logger())
    return Completed(message="; ".join(outcomes))


@task(cache_policy=NO_CACHE, persist_result=False)
def register_model(name: str, checkout: Checkout) -> State[Any]:
    """Register a model; the state's message is the version."""
    code, tail = run_command([*ENIGMA, "register", "--model", name], checkout)
    if code != 0:
        return state_of(f"register {name}", code, tail)
    return Completed(message=version_in(tail, name))


PROMOTED = "promoted"
STAYS = "the champion stays"


@task(cache_policy=NO_CACHE, persist_result=False)
def promote_model(name: str, version: str, promotion: Promotion, checkout: Checkout) -> State[Any]:
    """Promote a version; the gates and their figures become an artifact."""
    options = ["--allow-tie"] * promotion.allow_tie + ["--dry-run"] * promotion.dry_run
    command = [*ENIGMA, "promote", "--model", name, "--version", version, *options]
    code, tail = run_command(command, checkout)
    if gates := gates_in(tail):
        description = f"Gates of {name} version {version}"
        create_table_artifact(gates, key=f"gates-{name}", description=description)
    if code != 0:
        return state_of(f"promote {name}", code, tail)
    return Completed(message=PROMOTED if f"{name}: {PROMOTED}" in tail else STAYS)


def version_in(lines: Sequence[str], name: str) -> str:
    """The version in the last words of `enigma register`.

    Example:
        >>> version_in(["12:00:00 INFO x: registered", "enigma-lm version 7"], "enigma-lm")
        '7'
    """
    found = [line.split()[-1] for line in lines if line.startswith(f"{name} version ")]
    return found[-1]


def gates_in(lines: Sequence[str]) -> list[dict[str, str]]:
    """The gates that `enigma promote` logged, in order.

    Example:
        >>> gates_in(["12:00:00 INFO p: enigma-lm 7: gate causality: is_causal is True"])
        [{'gate': 'causality', 'figures': 'is_causal is True'}]
    """
    pattern = re.compile(r"enigma-\w+ \d+: gate (\w+): (.*)")
    found = (pattern.search(line) for line in lines)
    return [{"gate": match[1], "figures": match[2]} for match in found if match]
