"""The MLflow run that belongs to a training run."""

from pathlib import Path

from pipelines.base.errors import UserError
from pipelines.runs.directory import RunConfig, RunDirectory
from pipelines.tracking.run_log import RunLog
from pipelines.tracking.store import tracking_uri
from pipelines.tracking.uris import shown_uri

# What MLflow calls the ends of a run.
ENDINGS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def open_run_log(run: RunDirectory, config: RunConfig) -> RunLog:
    """Start the MLflow run of a training run, or resume it.

    Args:
        run: The directory of the run; it stores the id of its MLflow run.
        config: Its configuration.

    Returns:
        The log, with parameters, tags and the data set. It sends the run's metrics.
    """
    run_log = RunLog.open(
        # Named like its directory: runs of one profile are compared side by side.
        run_name=f"train/{config.profile} {run.path.name}",
        params={
            "profile": config.profile,
            "model": config.model.model_dump(mode="json"),
            "train": config.train.model_dump(mode="json"),
        },
        tags={
            "profile": config.profile,
            "fingerprint": config.fingerprint,
            "shards_root": config.shards_root,
            "certificate_sha256": config.certificate_sha256,
            **run.read_device(),
        },
        metrics=run.metrics,
    )
    run_log.dataset(
        name=f"{config.profile}/shards",
        root=config.shards_root,
        source=str(config.shards),
        context="training",
    )
    return run_log


def resend(path: Path) -> str:
    """Send the metrics that MLflow has not received yet, into the same MLflow run.

    Args:
        path: The directory of the run.

    Returns:
        The id of the MLflow run.

    Raises:
        UserError: If the run is still training (its ranks send by themselves), or if the
            store still cannot be reached.
    """
    run = RunDirectory(path)
    config = run.read_config()
    with run.locked():
        outcome = run.read_outcome()
        run_log = open_run_log(run, config)
        run_log.finish(ENDINGS[outcome.status if outcome else "stopped"])
    if run_log.run_id is None or run_log.num_waiting:
        raise UserError(
            f"expected an MLflow store at {shown_uri(tracking_uri())}, got no answer",
            "start the store and try again",
        )
    return run_log.run_id
