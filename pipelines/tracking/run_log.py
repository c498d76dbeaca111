"""One run in MLflow: its parameters, metrics and files.

The log of a run must never stop its training. Metrics go to a file first; a background thread
sends what is new in it every few seconds, starting at the offset that the store has accepted.
While the store is unreachable the file grows; the rest is sent once the store is back: by this
process, by the next one that opens the run, or by `enigma resend`.
"""

import atexit
import json
import logging
import math
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.tracking.git import GitState
from pipelines.tracking.metrics_file import TIME, MetricsFile
from pipelines.tracking.store import initialise_store, tracking_uri
from pipelines.tracking.uris import hide_password, shown_uri

FLUSH_INTERVAL_S = 2.0
FINISH_PATIENCE_S = 20.0
# MLflow's limits for a parameter, for `log_batch`, and for a dataset's digest.
MAX_PARAM_CHARACTERS = 6000
MAX_METRICS_PER_BATCH = 1000
MAX_PARAMS_PER_BATCH = 100
MAX_DIGEST_CHARACTERS = 36
# MLflow's charts stand in sections, named by what comes before a slash and sorted by that name;
# what has no section comes last. The curves that everybody looks at first are in this one.
LOSS_SECTION = "loss"
LOSSES = re.compile(r".*(train|validation)_(loss|nll)_nats(_per_dim)?")
# By default MLflow retries a request for minutes; this log does its own retries.
CLIENT_ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
# The store understood the request and refused it: repeating it would not help.
REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"})

logger = logging.getLogger(__name__)


class RunLog:
    """Parameters, metrics and files of one MLflow run; open it with `RunLog.open`.

    It survives a store that goes away and comes back: nothing is raised, no step of a metric
    is sent twice, and every value keeps the time at which it was logged. Only one process at
    a time may send a metrics file; for a training run its lock ensures that.
    """

    def __init__(
        self,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None,
        metrics: MetricsFile,
    ) -> None:
        self._run_name = run_name
        self._params = flatten(params)
        self._tags = {**GitState.read().tags(), **tags}
        self._metrics = metrics
        self._resume = run_id or metrics.run_id
        self._run_id: str | None = None
        self._client: Any = None
        self._files: list[tuple[Path, str]] = []
        self._datasets: list[Any] = []
        self._arrived: dict[str, set[int]] = {}
        self._not_finite: set[str] = set()
        self._away = False
        self._waiting = threading.Lock()
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._sender = threading.Thread(target=self._send_periodically, name="run-log", daemon=True)

    @classmethod
    def open(
        cls,
        *,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None = None,
        metrics: MetricsFile | None = None,
    ) -> "RunLog":
        """Start an MLflow run, or resume one.

        Args:
            run_name: Shown in the MLflow UI.
            params: Nested settings; they become dotted names.
            tags: Tags in addition to the git commit.
            run_id: The run to resume; by default the one that `metrics` belongs to. Without
                one, or if it no longer exists, a new run is created.
            metrics: The file whose present and future records are sent; by default a
                temporary one.

        Returns:
            The log. Its `run_id` is None until the store can be reached.
        """
        for name, value in CLIENT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        log = cls(run_name, params, tags, run_id, metrics or _temporary_file())
        log._send()
        log._sender.start()
        return log

    @property
    def run_id(self) -> str | None:
        """The id of the run; None until the store has been reached once."""
        return self._run_id

    @property
    def num_waiting(self) -> int:
        """Records and files that have not been sent."""
        return len(self._metrics.unsent()) + len(self._files)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record values of one step; returns at once.

        Args:
            step: Optimiser step. MLflow keeps the first value that a metric has for a step.
            metrics: Names to values; those that are not finite are dropped with a warning.
        """
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        for name in metrics.keys() - finite.keys() - self._not_finite:
            self._not_finite.add(name)
            logger.warning(
                "%s is %s at step %d: such values are not logged", name, metrics[name], step
            )
        self._metrics.append({"step": step, **finite})

    def artifact(self, path: Path, folder: str) -> None:
        """Attach a file, or the files of a directory; it is sent in the background.

        Args:
            path: The file or directory; it must exist until `finish`.
            folder: Its folder among the run's artifacts.
        """
        with self._waiting:
            self._files.append((path.resolve(), folder))

    def dataset(self, *, name: str, root: str, source: str, context: str) -> None:
        """Record which data went into the run.

        Args:
            name: Name of the data set.
            root: The root of its manifest. (MLflow's own digest hashes the first
                rows only.)
            source: Its path.
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
        """Send the rest and close the run; an unreachable store is retried for a short time.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            patience_s: Return after this time, even while a request is in progress.
        """
        self._stop.set()
        closer = threading.Thread(target=self._close, args=(status,), daemon=True)
        closer.start()
        closer.join(patience_s)
        if self.num_waiting:
            logger.warning(
                "MLflow at %s is unreachable: %d records and %d files of run %s were not sent",
                shown_uri(tracking_uri()),
                len(self._metrics.unsent()),
                len(self._files),
                self._run_name,
            )

    def _close(self, status: str) -> None:
        deadline = time.monotonic() + FINISH_PATIENCE_S
        self._sender.join()
        while not self._send(status) and time.monotonic() < deadline:
            time.sleep(0.5)

    def _send_periodically(self) -> None:
        while not self._stop.wait(FLUSH_INTERVAL_S):
            self._send()

    def _send(self, final_status: str | None = None) -> bool:
        """Send all that is new; if the store is unreachable, warn and return False."""
        with self._sending:
            try:
                if self._run_id is None:
                    self._connect()
                elif self._away:
                    self._read_arrived_steps()
                self._send_metrics()
                self._send_files()
                if final_status is not None:
                    self._client.set_terminated(self._run_id, final_status)
            except Exception as error:  # noqa: BLE001 - a log must not end: it is sent again later
                if not self._away:
                    logger.warning(
                        "MLflow at %s is unreachable, retrying in the background: %s",
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
        self._resume = run.info.run_id
        self._metrics.belongs_to(run.info.run_id)
        old = run.data.params
        params = [Param(name, value) for name, value in self._params.items() if name not in old]
        for start in range(0, len(params), MAX_PARAMS_PER_BATCH):
            batch = params[start : start + MAX_PARAMS_PER_BATCH]
            self._client.log_batch(run.info.run_id, params=batch)
        for name, value in self._tags.items():
            self._client.set_tag(run.info.run_id, name, value)
        self._run_id = run.info.run_id
        self._read_arrived_steps()

    def _find_run(self) -> Any:
        """The run to resume; None if there is none, or if it was deleted."""
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
            logger.warning("run %s no longer exists; starting a new one", self._resume)
            return None
        return run

    def _read_arrived_steps(self) -> None:
        """Ask which steps the run has: MLflow would append a repeated step again.

        A request may have succeeded although its answer was lost, and a rewritten file (a
        resume resets it to the checkpoint) is sent from its start.
        """
        for name in self._client.get_run(self._run_id).data.metrics:
            history = self._client.get_metric_history(self._run_id, name)
            self._arrived[name] = {metric.step for metric in history}

    def _send_metrics(self) -> None:
        """Send the file from its offset; advance the offset past each accepted batch."""
        lines = self._metrics.unsent()
        while lines:
            batch: dict[tuple[str, int], Any] = {}
            count = 0
            for line in lines:
                fresh = self._fresh(json.loads(line), batch)
                if count and len(batch) + len(fresh) > MAX_METRICS_PER_BATCH:
                    break
                batch |= fresh
                count += 1
            if batch:
                self._offer("values", self._client.log_batch, metrics=list(batch.values()))
            for name, step in batch:
                self._arrived.setdefault(name, set()).add(step)
            self._metrics.accept(lines[:count])
            lines = lines[count:]

    def _fresh(
        self, record: dict[str, float], batch: Mapping[tuple[str, int], Any]
    ) -> dict[tuple[str, int], Any]:
        """The values of a record that neither the store nor the batch has."""
        from mlflow.entities import Metric

        step, time_s = int(record.pop("step")), record.pop(TIME)
        charts = {chart(name): value for name, value in record.items()}
        return {
            (name, step): Metric(name, value, int(time_s * 1000), step)
            for name, value in charts.items()
            if step not in self._arrived.get(name, ()) and (name, step) not in batch
        }

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
                logger.warning("%s was deleted before it could be attached to the run", path)
            with self._waiting:
                del self._files[0]

    def _offer(self, what: str, send: Any, *arguments: Any, **more: Any) -> None:
        """Send once; what the store refuses is dropped, as it would block the rest."""
        from mlflow.exceptions import MlflowException

        try:
            send(self._run_id, *arguments, **more)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            logger.warning("MLflow refused %s of run %s: %s", what, self._run_id, error)


def _temporary_file() -> MetricsFile:
    directory = Path(tempfile.mkdtemp(prefix="enigma-run-log-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return MetricsFile(directory / "metrics.jsonl")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn nested settings into dotted names and text, as MLflow stores them.

    Example:
        >>> flatten({"train": {"epochs": 2, "seed": None}})
        {'train.epochs': '2', 'train.seed': 'None'}
    """
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = str(value)[:MAX_PARAM_CHARACTERS]
    return flat


def chart(metric: str) -> str:
    """Return the name under which MLflow has a metric.

    Examples:
        >>> chart("train_loss_nats"), chart("learning_rate")
        ('loss/train_loss_nats', 'learning_rate')
    """
    return f"{LOSS_SECTION}/{metric}" if LOSSES.fullmatch(metric) else metric
