"""Flow `validate`: the data path up to the certificate."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.running.checkout import Profile, Settings, Source
from flows.running.notify import tell_of_failure
from flows.running.stages import run_until


@flow(name="validate", on_failure=[tell_of_failure], on_crashed=[tell_of_failure])
def validate(
    profile: Profile = "sanguo",
    source: Source | None = None,
    refresh: bool = False,
) -> State[Any]:
    """Make the shards of a profile and check them; a refusal fails the run.

    Args:
        profile: A profile of `params.yaml`.
        source: Documents instead of the profile's source, as for `ingest.source`; a relative path
            starts at the repository.
        refresh: Read the source again even if DVC sees no change, as in files outside `sources/`.

    Returns:
        Completed, with the DVC experiment that has the result; or Failed, with the reason.
    """
    return run_until("validate", Settings(profile=profile, source=source, refresh=refresh))
