"""The MLflow run that belongs to a training run, from the first rank to the last figure."""

from pathlib import Path

from pipelines.base.errors import UserError
from pipelines.runs.directory import RunConfig, RunDirectory
from pipelines.tracking.store import RunLog, tracking_uri

# How MLflow calls the ends of a run.
ENDINGS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def open_run_log(run: RunDirectory, config: RunConfig) -> RunLog:
    """Start the MLflow run of a training run, or go on with it.

    Args:
        run: The directory of the run; it remembers which MLflow run is its own.
        config: Its configuration.

    Returns:
        The log, with parameters, tags and the data set.
    """
    run_log = RunLog.open(
        # Runs of one profile are compared side by side: each is named like its directory.
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
        },
        run_id=run.mlflow_run_id,
    )
    run_log.dataset(
        name=f"{config.profile}/shards",
        root=config.shards_root,
        source=str(config.shards),
        context="training",
    )
    remember(run, run_log)
    return run_log


def remember(run: RunDirectory, run_log: RunLog) -> None:
    """Write down which MLflow run it is, once the store has told."""
    if run_log.run_id is not None:
        run.remember_mlflow_run(run_log.run_id)


def complete(run: RunDirectory, run_log: RunLog, status: str, plots: list[Path]) -> None:
    """Close the MLflow run with everything that it should hold.

    Args:
        run: The directory of the run.
        run_log: Its log.
        status: "FINISHED", "FAILED" or "KILLED".
        plots: Files that belong beside the metrics.
    """
    # What has arrived is not sent again.
    for record in run.read_metrics():
        run_log.log_record(record)
    for path in plots:
        run_log.artifact(path, "plots")
    run_log.finish(status)
    remember(run, run_log)


def resend(path: Path) -> str:
    """Send what the MLflow store missed of a run, into the same MLflow run.

    Args:
        path: The directory of the run.

    Returns:
        The id of the MLflow run.

    Raises:
        UserError: If the run goes on (its ranks send by themselves), or if the store is
            still away.
    """
    run = RunDirectory(path)
    config = run.read_config()
    outcome = run.read_outcome()
    if outcome is None and run.launcher_is_alive():
        raise UserError(f"{path} is running, and sends what waits by itself", "wait until it ends")
    status = ENDINGS[outcome.status if outcome else "stopped"]
    run_log = open_run_log(run, config)
    complete(run, run_log, status, plots=[])
    if run.mlflow_run_id is None or run_log.num_waiting:
        raise UserError(f"the MLflow store at {tracking_uri()} is away", "start it and try again")
    return run.mlflow_run_id
