"""The MLflow store: where it is, how it is opened, and one run's log.

A run's log must never stop a training run. Everything is handed to a background
thread, which sends it in batches every few seconds; while the server is away the
values wait, and they are sent when it is back, at the latest in `finish`.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipelines.base.errors import UserError
from pipelines.tracking.flat_names import flatten
from pipelines.tracking.git_state import GitState
from pipelines.tracking.uris import hide_password, shown_uri

EXPERIMENT = "enigma"
SQLITE_PREFIX = "sqlite:///"
FLUSH_INTERVAL_S = 2.0
FINISH_PATIENCE_S = 20.0
# Limits of MLflow's `log_batch`, and of a dataset's digest.
MAX_METRICS_PER_BATCH = 1000
MAX_PARAMS_PER_BATCH = 100
MAX_DIGEST_CHARACTERS = 36
# MLflow retries a request for minutes by itself; the log has its own patience.
CLIENT_ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
# A command that a person waits for gives up after some seconds instead.
COMMAND_ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
# The store understood and said no: to ask again would not help.
REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"})

logger = logging.getLogger(__name__)


def tracking_uri() -> str:
    """Where runs and models are recorded.

    Returns:
        `MLFLOW_TRACKING_URI`, or a SQLite file `mlflow.db` in the working directory.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE_PREFIX}{Path.cwd() / 'mlflow.db'}"


def tracking_directory() -> Path:
    """Where files that belong to the store are.

    Returns:
        The directory of a SQLite store; for a database or a server `ENIGMA_STORE_DIR`,
        by which a checkout finds its repository's, or the working directory.
    """
    uri = tracking_uri()
    if uri.startswith(SQLITE_PREFIX):
        return Path(uri.removeprefix(SQLITE_PREFIX)).resolve().parent
    return Path(os.environ.get("ENIGMA_STORE_DIR", "")).resolve()


def local_state(name: str) -> Path:
    """A file of ours that belongs to the store (locks, the ledger), below `.enigma/`."""
    directory = tracking_directory() / ".enigma"
    directory.mkdir(parents=True, exist_ok=True)
    return directory / name


def initialise_store() -> str:
    """Make the store and the experiment ready, once, however many ask at the same time.

    Several first users of a cold SQLite file would each create its tables, and
    all but one would crash: so this happens under a file lock.

    Returns:
        The id of the experiment.

    Raises:
        mlflow.exceptions.MlflowException: If the store cannot be reached.
    """
    import mlflow
    from mlflow.tracking import MlflowClient

    uri = tracking_uri()
    with FileLock(local_state("store.lock"), timeout=120):
        # MLflow looks at the global value in places, even where a client is given.
        mlflow.set_tracking_uri(uri)
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            # A server decides by itself where artifacts go.
            local = not uri.startswith(("http://", "https://"))
            artifacts = tracking_directory() / "mlartifacts"
            return str(client.create_experiment(EXPERIMENT, artifacts.as_uri() if local else None))
        if experiment.lifecycle_stage == "deleted":
            logger.warning("the experiment %s had been deleted; restoring it", EXPERIMENT)
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)


def connect() -> Any:
    """Open the store for a command, which cannot go on without it.

    Returns:
        MLflow's client; the store and the experiment are ready.

    Raises:
        UserError: If the store cannot be reached or opened.
    """
    from mlflow.tracking import MlflowClient

    for name, value in COMMAND_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        initialise_store()
    except store_errors() as error:
        raise UserError(
            f"expected an MLflow store at {shown_uri(tracking_uri())}, which cannot be used: "
            f"{hide_password(str(error), tracking_uri())}",
            "start the server with `make serve`, or set MLFLOW_TRACKING_URI to another store "
            "(without it, mlflow.db in the working directory is used)",
        ) from None
    return MlflowClient(tracking_uri())


def store_errors() -> tuple[type[Exception], ...]:
    """What MLflow raises when a store is away, locked, damaged or refuses."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, RequestException, SQLAlchemyError, OSError


class RunLog:
    """Parameters, metrics and files of one MLflow run; open it with `RunLog.open`.

    Safe against a store that goes away and comes back: nothing is raised, nothing
    is sent twice (before it resends, it reads what arrived), and every value keeps
    the time at which it was logged.
    """

    def __init__(
        self, run_name: str, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None
    ) -> None:
        self._run_name = run_name
        self._params = flatten(params)
        self._tags = {**GitState.read().tags(), **tags}
        self._resume = run_id
        self._run_id: str | None = None
        self._client: Any = None
        self._metrics: list[Any] = []
        self._files: list[tuple[Path, str]] = []
        self._datasets: list[Any] = []
        self._seen: dict[str, set[int]] = {}
        self._not_finite: set[str] = set()
        self._away = False
        self._waiting = threading.Lock()
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._sender = threading.Thread(target=self._send_often, name="run-log", daemon=True)

    @classmethod
    def open(
        cls,
        *,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None = None,
    ) -> "RunLog":
        """Start a run, or go on with one.

        Args:
            run_name: Shown in the MLflow UI.
            params: Nested settings; they become dotted names.
            tags: More tags, beside the git commit.
            run_id: A run to go on with; a new one is made if it no longer exists.

        Returns:
            The log. Its `run_id` is None for as long as the store cannot be reached.
        """
        for name, value in CLIENT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        log = cls(run_name, params, tags, run_id)
        log._send()
        log._sender.start()
        return log

    @property
    def run_id(self) -> str | None:
        """The id of the run; None while the store has never been reached."""
        return self._run_id

    @property
    def num_waiting(self) -> int:
        """Values and files that have not been sent."""
        return len(self._metrics) + len(self._files)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record values of one step; returns at once.

        Args:
            step: Optimiser step. A step that a metric already has is left as it is.
            metrics: Names to values. What is not finite is left out, with a warning.
        """
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        for name, value in metrics.items():
            if math.isfinite(value):
                with self._waiting:
                    self._metrics.append(Metric(name, float(value), now_ms, step))
            elif name not in self._not_finite:
                self._not_finite.add(name)
                logger.warning("%s is %s at step %d: such values are not logged", name, value, step)

    def log_record(self, record: Mapping[str, float]) -> None:
        """Record one line of `metrics.jsonl`, whose `step` says where it belongs."""
        values = {name: value for name, value in record.items() if name != "step"}
        self.log(int(record["step"]), values)

    def artifact(self, path: Path, folder: str) -> None:
        """Attach a file, or the files of a directory; it is copied in the background.

        Args:
            path: The file or directory; it must stay until `finish`.
            folder: Where it goes among the run's artifacts.
        """
        with self._waiting:
            self._files.append((path.resolve(), folder))

    def dataset(self, *, name: str, root: str, source: str, context: str) -> None:
        """Name the data that went into the run.

        Args:
            name: Name of the data set.
            root: The root of its manifest. (MLflow's own digest hashes the first
                rows only.)
            source: Where it is.
            context: What it was used for ("training").
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name, digest=root[:MAX_DIGEST_CHARACTERS], source_type="local", source=source
        )
        tags = [InputTag("mlflow.data.context", context), InputTag("root", root)]
        with self._waiting:
            self._datasets.append(DatasetInput(dataset, tags))

    def finish(self, status: str, patience_s: float | None = None) -> None:
        """Send what waits and close the run; waits a little for a store that is away.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            patience_s: Return after so long, even in the middle of a request.
        """
        self._stop.set()
        closer = threading.Thread(target=self._close, args=(status,), daemon=True)
        closer.start()
        closer.join(patience_s)
        if self.num_waiting:
            logger.warning(
                "MLflow at %s stayed away: %d values and %d files of run %s were not sent",
                shown_uri(tracking_uri()), len(self._metrics), len(self._files), self._run_name,
            )  # fmt: skip

    def _close(self, status: str) -> None:
        deadline = time.monotonic() + FINISH_PATIENCE_S
        self._sender.join()
        while not self._send(status) and time.monotonic() < deadline:
            time.sleep(0.5)

    def _send_often(self) -> None:
        while not self._stop.wait(FLUSH_INTERVAL_S):
            self._send()

    def _send(self, final_status: str | None = None) -> bool:
        """Send what waits; False, with a warning, if the store is away."""
        with self._sending:
            try:
                if self._run_id is None:
                    self._connect()
                elif self._away:
                    self._read_what_arrived()
                self._send_metrics()
                self._send_files()
                if final_status is not None:
                    self._client.set_terminated(self._run_id, final_status)
            except store_errors() as error:
                if not self._away:
                    logger.warning(
                        "MLflow at %s is away, going on: %s",
                        shown_uri(tracking_uri()),
                        hide_password(str(error), tracking_uri()),
                    )
                self._away = True
                return False
            if self._away:
                logger.info("MLflow at %s is back", shown_uri(tracking_uri()))
            self._away = False
            return True

    def _connect(self) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        experiment_id = initialise_store()
        self._client = MlflowClient(tracking_uri())
        run = self._find_run()
        if run is None:
            run = self._client.create_run(experiment_id, run_name=self._run_name)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        old = run.data.params
        params = [Param(name, value) for name, value in self._params.items() if name not in old]
        for start in range(0, len(params), MAX_PARAMS_PER_BATCH):
            batch = params[start : start + MAX_PARAMS_PER_BATCH]
            self._client.log_batch(run.info.run_id, params=batch)
        for name, value in self._tags.items():
            self._client.set_tag(run.info.run_id, name, value)
        self._run_id = self._resume = run.info.run_id
        self._read_what_arrived()

    def _find_run(self) -> Any:
        """The run to go on with, or None if it is gone or was deleted."""
        from mlflow.exceptions import MlflowException

        if self._resume is None:
            return None
        try:
            run = self._client.get_run(self._resume)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            run = None
        if run is None or run.info.lifecycle_stage != "active":
            logger.warning("run %s is gone; a new one is made", self._resume)
            return None
        return run

    def _read_what_arrived(self) -> None:
        """A request may have failed after it was served; a step must not be sent twice."""
        for name in self._client.get_run(self._run_id).data.metrics:
            history = self._client.get_metric_history(self._run_id, name)
            self._seen[name] = {metric.step for metric in history}

    def _send_metrics(self) -> None:
        with self._waiting:
            waiting = list(self._metrics)
        for start in range(0, len(waiting), MAX_METRICS_PER_BATCH):
            batch = waiting[start : start + MAX_METRICS_PER_BATCH]
            fresh: dict[tuple[str, int], Any] = {}
            for metric in batch:
                if metric.step not in self._seen.get(metric.key, ()):
                    fresh.setdefault((metric.key, metric.step), metric)
            if fresh:
                self._offer("values", self._client.log_batch, metrics=list(fresh.values()))
            for name, step in fresh:
                self._seen.setdefault(name, set()).add(step)
            with self._waiting:
                del self._metrics[: len(batch)]

    def _send_files(self) -> None:
        while self._datasets:
            self._offer("a data set", self._client.log_inputs, datasets=[self._datasets[0]])
            with self._waiting:
                del self._datasets[0]
        while self._files:
            path, folder = self._files[0]
            send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            if path.exists():
                self._offer(str(path), send, str(path), artifact_path=folder)
            else:
                logger.warning("%s went away before it could be attached to the run", path)
            with self._waiting:
                del self._files[0]

    def _offer(self, what: str, send: Any, *arguments: Any, **more: Any) -> None:
        """Send once; what the store refuses is dropped, or all behind it would wait for ever."""
        from mlflow.exceptions import MlflowException

        try:
            send(self._run_id, *arguments, **more)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            logger.warning("MLflow refused %s of run %s: %s", what, self._run_id, error)
