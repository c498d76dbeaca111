"""Register and promote the models of a checkout, as tasks of a flow."""

import sys
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict

from flows.running.checkout import Checkout
from flows.running.command import run_for_json, state_of
from flows.running.notify import notify

MODELS = ("enigma-lm", "enigma-flow")
PROMOTED = "promoted"
# Run as a module, so the code is that of the checkout, as with the stages.
ENIGMA = (sys.executable, "-m", "pipelines.cli")


class Promotion(BaseModel):
    """How candidates are judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    allow_tie: bool = False
    dry_run: bool = False


def promote_models(profile: str, promotion: Promotion, checkout: Checkout) -> State[Any]:
    """Register both models, and promote each if its gates pass.

    Args:
        profile: The profile that made them.
        promotion: How they are judged.
        checkout: Where they are.

    Returns:
        Completed, with the outcome of each; Failed with the reason at the first refusal.
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
    ended, registered = run_for_json([*ENIGMA, "register", "--model", name, "--json"], checkout)
    if ended.code != 0:
        return state_of(f"register {name}", ended)
    return Completed(message=registered[0]["version"])


@task(cache_policy=NO_CACHE, persist_result=False)
def promote_model(name: str, version: str, promotion: Promotion, checkout: Checkout) -> State[Any]:
    """Promote a version; the state's message is the outcome, an artifact shows the gates."""
    options = ["--allow-tie"] * promotion.allow_tie + ["--dry-run"] * promotion.dry_run
    command = [*ENIGMA, "promote", "--model", name, "--version", version, "--json", *options]
    ended, decisions = run_for_json(command, checkout)
    if decisions:
        create_table_artifact(
            decisions[0]["gates"],
            key=f"gates-{name}",
            description=f"Gates of {name} version {version}: {decisions[0]['outcome']}",
        )
    if ended.code != 0:
        return state_of(f"promote {name}", ended)
    return Completed(message=decisions[0]["outcome"])
