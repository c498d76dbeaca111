"""Flow `ingest`: source to raw parquet."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.running.checkout import Profile, Settings, Source
from flows.running.notify import tell_of_failure
from flows.running.stages import run_until


@flow(name="ingest", on_failure=[tell_of_failure], on_crashed=[tell_of_failure])
def ingest(
    profile: Profile = "sanguo",
    source: Source | None = None,
    refresh: bool = False,
) -> State[Any]:
    """Bring the raw text of a profile up to date.

    Args:
        profile: A profile of `params.yaml`.
        source: Documents instead of the profile's source, as for `ingest.source`; a relative path
            starts at the repository.
        refresh: Read the source again even if DVC sees no change, as in files outside `sources/`.

    Returns:
        Completed, with the DVC experiment that has the result; or Failed, with the reason.
    """
    return run_until("ingest", Settings(profile=profile, source=source, refresh=refresh))
