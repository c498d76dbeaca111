"""Flow `promote`: register and promote what a profile's last run has made."""

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
    """Register the models of a profile and promote them, if every gate holds.

    Parameters that differ from the profile are those that the models were made with.

    Args:
        profile: A profile of `params.yaml`.
        source: Parquet files instead of the profile's source: a path, directory or glob
            (relative ones start at the repository), `packaged:sanguo`, or
            `hf:<owner>/<dataset>/<config>`.
        ranks: Training processes, instead of the profile's number.
        steps: Stop training after so many optimiser steps.
        allow_tie: Take a successor that is not worse than the champion, if not better.
        dry_run: Check the gates only; the champion stays.

    Returns:
        Completed, with what became of each model; or Failed, with the gate and its figures.
    """
    settings = Settings(profile=profile, source=source, ranks=ranks, steps=steps)
    return promote_outputs(settings, Promotion(allow_tie=allow_tie, dry_run=dry_run))
