"""Flow `pipeline`: raw text to a promoted model."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.running.checkout import Profile, Ranks, Settings, Source, Steps
from flows.running.notify import tell_of_failure
from flows.running.promotion import Promotion
from flows.running.stages import run_until


@flow(name="pipeline", on_failure=[tell_of_failure], on_crashed=[tell_of_failure])
def pipeline(
    profile: Profile = "sanguo",
    source: Source | None = None,
    refresh: bool = False,
    *,
    ranks: Ranks | None = None,
    steps: Steps | None = None,
    allow_tie: bool = False,
) -> State[Any]:
    """Run everything: data, training, evaluation, samples, registration, promotion.

    Args:
        profile: A profile of `params.yaml`.
        source: Documents instead of the profile's source, as for `ingest.source`; a relative path
            starts at the repository.
        refresh: Read the source again even if DVC sees no change, as in files outside `sources/`.
        ranks: Number of training processes, instead of the profile's.
        steps: Stop training after this many optimiser steps.
        allow_tie: Accept a candidate that is not worse than the champion.

    Returns:
        Completed, with the outcome of each model; or Failed, with the gate and its figures.
    """
    settings = Settings(profile=profile, source=source, refresh=refresh, ranks=ranks, steps=steps)
    return run_until("sample_flow", settings, Promotion(allow_tie=allow_tie))
