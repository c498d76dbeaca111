"""The certificate without which nothing is counted and nothing trains."""

from pathlib import Path

from pipelines.base.artifacts import read_json
from pipelines.base.errors import GateError


def check_certificate(path: Path, shards_root: str) -> None:
    """Refuse data that `validate` has not passed.

    Raises:
        GateError: `certificate`.
    """
    certificate = read_json(path)
    if certificate["passed"] is not True:
        raise GateError(
            "certificate",
            f"{path} says that the data did not pass",
            "its page names what failed: change the data or the parameters, then run `dvc repro`",
        )
    if certificate["shards_root"] != shards_root:
        raise GateError(
            "certificate",
            f"{path} is for shards {certificate['shards_root'][:12]}..., "
            f"these are {shards_root[:12]}...",
            "run `dvc repro validate` on these shards",
        )
