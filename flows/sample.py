"""Flow `sample`: the whole graph, up to samples of the flow."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.running.checkout import Profile, Ranks, Settings, Source, Steps
from flows.running.notify import tell_of_failure
from flows.running.stages import run_until


@flow(name="sample", on_failure=[tell_of_failure], on_crashed=[tell_of_failure])
def sample(
    profile: Profile = "sanguo",
    source: Source | None = None,
    refresh: bool = False,
    ranks: Ranks | None = None,
    steps: Steps | None = None,
) -> State[Any]:
    """Fit the normalizing flow of a profile and draw samples from it.

    Args:
        profile: A profile of `params.yaml`.
        source: Documents instead of the profile's source, as for `ingest.source`; a relative path
            starts at the repository.
        refresh: Read the source again even if DVC sees no change, as in files outside `sources/`.
        ranks: Number of training processes, instead of the profile's.
        steps: Stop training after this many optimiser steps.

    Returns:
        Completed, with the DVC experiment that has the result; or Failed, with the reason.
    """
    return run_until(
        "sample_flow",
        Settings(profile=profile, source=source, refresh=refresh, ranks=ranks, steps=steps),
    )
