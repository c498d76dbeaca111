"""Flow `promote`: register and promote what the last run of a profile made."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.running.checkout import Profile, Ranks, Settings, Source, Steps
from flows.running.notify import tell_of_failure
from flows.running.promotion import Promotion
from flows.running.stages import promote_outputs


@flow(name="promote", on_failure=[tell_of_failure], on_crashed=[tell_of_failure])
def promote(  # noqa: PLR0917 - a deployment's parameters go by name
    profile: Profile = "sanguo",
    source: Source | None = None,
    ranks: Ranks | None = None,
    steps: Steps | None = None,
    allow_tie: bool = False,
    dry_run: bool = False,
) -> State[Any]:
    """Register the models of a profile, and promote them if every gate passes.

    Use the parameters with which the models were made.

    Args:
        profile: A profile of `params.yaml`.
        source: Documents instead of the profile's source, as for `ingest.source`; a relative path
            starts at the repository.
        ranks: Number of training processes, instead of the profile's.
        steps: Stop training after this many optimiser steps.
        allow_tie: Accept a candidate that is not worse than the champion.
        dry_run: Check the gates, and leave the champion as it is.

    Returns:
        Completed, with the outcome of each model; or Failed, with the gate and its figures.
    """
    settings = Settings(profile=profile, source=source, ranks=ranks, steps=steps)
    return promote_outputs(settings, Promotion(allow_tie=allow_tie, dry_run=dry_run))
