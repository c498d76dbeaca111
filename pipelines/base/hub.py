"""The Hugging Face hub, and what to say when it cannot be reached."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.base.errors import UserError


@contextmanager
def hub_access(what: str, *, fix: str) -> Iterator[None]:
    """Turn the hub's failures into one clear message.

    Args:
        what: What is being fetched, for the message.
        fix: How to go on without the hub.

    Raises:
        UserError: If the hub cannot be reached, knows no such repository or
            file, or breaks off.
    """
    # HTTPError is that of the library the client is built on, which has changed once.
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HTTPError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except RepositoryNotFoundError:
        raise UserError(
            f"the Hugging Face hub knows no {what} (or it is private)",
            f"correct the name; or {fix}",
        ) from None
    except (OSError, HTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"could not get {what} from the Hugging Face hub: {reason}",
            "run the command again once the network is back (a download goes on where it "
            f"stopped); or {fix}",
        ) from error
