"""The run log against real MLflow stores: SQLite, and a server that dies and comes back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pipelines.base.errors import UserError
from pipelines.registry.names import LM
from pipelines.registry.promote import promote
from pipelines.registry.register import register
from pipelines.registry.versions import load_champion
from pipelines.runs.directory import Outcome
from pipelines.runs.mlflow_run import open_run_log, resend
from pipelines.tracking import run_log
from pipelines.tracking.metrics_file import MetricsFile
from pipelines.tracking.run_log import RunLog
from pipelines.tracking.store import tracking_uri
from pipelines.training.trainer import EnigmaTrainer
from tests.finished import write_finished_project
from tests.support import free_port, fresh_processes

pytestmark = pytest.mark.usefixtures("tables")

SETTINGS = {"train": {"epochs": 2, "max_steps": None}}


def open_log(run_id: str | None = None, metrics: MetricsFile | None = None) -> RunLog:
    tags = {"profile": "sanguo"}
    return RunLog.open(run_name="train", params=SETTINGS, tags=tags, run_id=run_id, metrics=metrics)


def steps_of(run_id: str, metric: str) -> list[int]:
    history = MlflowClient(tracking_uri()).get_metric_history(run_id, metric)
    return [point.step for point in history]


class Server:
    """A real `mlflow server` that can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"),
            *("--port", str(self.port), "--backend-store-uri", f"sqlite:///{self.directory}/s.db"),
            *("--artifacts-destination", str(self.directory / "artifacts")),
        ]
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.directory, env=environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        pytest.fail((self.directory / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def server(one_server: Server, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that is not running, and the address that it will have."""
    one_server.kill()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", one_server.uri)
    return one_server


def test_a_run_holds_params_metrics_files_data_and_commit(workspace: Path) -> None:
    figure = workspace / "loss.png"
    figure.write_bytes(b"png")
    log = open_log()
    log.log(10, {"train_loss_nats": 5.5, "learning_rate": 1e-3})
    log.log(20, {"train_loss_nats": 4.5})
    log.artifact(figure, "figures")
    log.dataset(name="shards", root="a" * 64, source="data/sanguo/shards", context="training")
    log.finish("FINISHED")

    client = MlflowClient(tracking_uri())
    run = client.get_run(log.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.epochs": "2", "train.max_steps": "None"}
    assert run.data.metrics == {"loss/train_loss_nats": 4.5, "learning_rate": 1e-3}
    assert run.data.tags["profile"] == "sanguo"
    assert run.data.tags["git_commit"] == "unknown"
    assert steps_of(log.run_id, "loss/train_loss_nats") == [10, 20]
    assert client.list_artifacts(log.run_id, "figures")[0].path == "figures/loss.png"
    [data] = run.inputs.dataset_inputs
    assert {tag.key: tag.value for tag in data.tags}["root"] == "a" * 64
    assert (workspace / "mlartifacts").is_dir()
    assert not (workspace / "mlruns").exists()


def test_values_that_are_not_finite_are_left_out_with_a_warning(workspace: Path, caplog) -> None:
    log = open_log()
    log.log(1, {"loss": float("nan"), "norm": float("inf"), "rate": 0.1})
    log.log(2, {"loss": float("nan")})
    log.finish("FAILED")
    run = MlflowClient(tracking_uri()).get_run(log.run_id)
    assert run.data.metrics == {"rate": 0.1}
    assert run.info.status == "FAILED"
    assert caplog.text.count("loss is nan at step 1") == 1
    assert "norm is inf at step 1" in caplog.text


def test_a_resumed_run_gets_no_step_twice(workspace: Path) -> None:
    first = open_log()
    for step in range(5):
        first.log(step, {"loss": 5.0 - step})
    first.finish("KILLED")
    second = open_log(run_id=first.run_id)
    for step in range(3, 8):
        second.log(step, {"loss": 5.0 - step, "new": 1.0})
        second.log(step, {"loss": 99.0})
    second.finish("FINISHED")
    assert second.run_id == first.run_id
    assert steps_of(first.run_id, "loss") == list(range(8))
    assert steps_of(first.run_id, "new") == [3, 4, 5, 6, 7]
    values = MlflowClient(tracking_uri()).get_metric_history(first.run_id, "loss")
    assert [point.value for point in values] == [5.0 - step for step in range(8)]


@pytest.mark.parametrize("deleted", [True, False])
def test_a_run_that_no_longer_exists_is_replaced(workspace: Path, caplog, deleted: bool) -> None:
    run_id = "0" * 32
    if deleted:
        first = open_log()
        first.finish("FINISHED")
        run_id = first.run_id
        MlflowClient(tracking_uri()).delete_run(run_id)
    log = open_log(run_id=run_id)
    log.log(1, {"loss": 1.0})
    log.finish("FINISHED")
    assert log.run_id not in (None, run_id)
    assert steps_of(log.run_id, "loss") == [1]
    assert f"run {run_id} no longer exists" in caplog.text


def test_values_arrive_during_the_run(workspace: Path, monkeypatch) -> None:
    monkeypatch.setattr(run_log, "FLUSH_INTERVAL_S", 0.1)
    log = open_log()
    log.log(1, {"loss": 1.0})
    deadline = time.monotonic() + 10
    while not steps_of(log.run_id, "loss") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert steps_of(log.run_id, "loss") == [1]
    log.finish("FINISHED")


def test_what_the_store_refuses_does_not_block_what_follows(workspace: Path, caplog) -> None:
    log = open_log()
    log.log(1, {"no $ in names": 1.0})
    log._send()
    log.log(1, {"loss": 1.0})
    log.artifact(workspace / "nothing.png", "figures")
    log.finish("FINISHED")
    assert steps_of(log.run_id, "loss") == [1]
    assert "MLflow refused values" in caplog.text
    assert "nothing.png was deleted" in caplog.text


def test_a_batch_whose_answer_was_lost_is_not_sent_again(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log()
    served = MlflowClient.log_batch

    def serve_and_lose_the_answer(*arguments: Any, **more: Any) -> None:
        served(*arguments, **more)
        raise ConnectionError("no answer")

    log.log(1, {"loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", serve_and_lose_the_answer)
        assert not log._send()
    assert log.num_waiting == 1
    log.log(2, {"loss": 2.0})
    log.finish("FINISHED")
    assert steps_of(log.run_id, "loss") == [1, 2]


def send_and_be_killed(path: Path, store: str) -> None:
    """Send batches of two values; die in the third, after the store has it."""
    # A fork server has the environment of the test that started it.
    os.environ["MLFLOW_TRACKING_URI"] = store
    run_log.MAX_METRICS_PER_BATCH = 2
    served, batches = MlflowClient.log_batch, []

    def serve_and_die(*arguments: Any, **more: Any) -> None:
        served(*arguments, **more)
        batches.append(more.get("metrics"))
        if sum(batch is not None for batch in batches) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    MlflowClient.log_batch = serve_and_die
    open_log(metrics=MetricsFile(path))


def test_a_killed_sender_is_continued_and_a_rewritten_file_is_sent_once(workspace: Path) -> None:
    metrics = MetricsFile(workspace / "run" / "metrics.jsonl")
    for step in range(10):
        metrics.append({"step": step, "loss": float(step)})
    killed = fresh_processes().Process(
        target=send_and_be_killed, args=(metrics.path, tracking_uri())
    )
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    run_id = metrics.run_id
    assert steps_of(run_id, "loss") == list(range(6))
    assert [json.loads(line)["step"] for line in metrics.unsent()] == list(range(4, 10))

    # A resume resets the file to its checkpoint, with the keys in another order.
    log = open_log(metrics=metrics)
    log._send()
    metrics.rewrite([{"loss": float(step), "step": step} for step in range(3)])
    for step in range(3, 12):
        metrics.append({"loss": 100.0 + step, "step": step})
    log._send()
    assert metrics.unsent() == []
    metrics.append({"step": 12, "loss": 12.0})
    log.finish("FINISHED")
    assert log.run_id == run_id
    assert steps_of(run_id, "loss") == list(range(13))
    assert MlflowClient(tracking_uri()).get_run(run_id).info.status == "FINISHED"


def test_a_run_that_was_deleted_gets_all_records_again(workspace: Path) -> None:
    metrics = MetricsFile(workspace / "run" / "metrics.jsonl")
    metrics.append({"step": 1, "loss": 1.0})
    first = open_log(metrics=metrics)
    first.finish("KILLED")
    assert metrics.unsent() == []
    MlflowClient(tracking_uri()).delete_run(first.run_id)
    second = open_log(metrics=metrics)
    second.finish("FINISHED")
    assert metrics.run_id == second.run_id != first.run_id
    assert steps_of(second.run_id, "loss") == [1]


@pytest.mark.slow
def test_a_server_that_starts_late_dies_and_comes_back_loses_nothing(
    server: Server, workspace: Path, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(run_log, "FLUSH_INTERVAL_S", 0.2)
    (workspace / "mlflow.db").unlink()
    figure = workspace / "loss.png"
    figure.write_bytes(b"png")
    log = open_log()
    assert log.run_id is None
    log.log(0, {"loss": 10.0})
    server.start()
    log._send()
    assert steps_of(log.run_id, "loss") == [0]
    server.kill()
    for step in range(1, 1500):
        started = time.perf_counter()
        log.log(step, {"loss": 10.0 / step})
        assert time.perf_counter() - started < 0.5, "training waited for the tracking server"
    log.artifact(figure, "figures")
    assert not log._send()
    logged_ms = time.time() * 1000
    server.start()
    log.log(1500, {"loss": 0.0})
    log.finish("FINISHED")
    client = MlflowClient(server.uri)
    history = client.get_metric_history(log.run_id, "loss")
    assert [point.step for point in history] == list(range(1501))
    assert history[1499].timestamp <= logged_ms < history[1500].timestamp
    assert client.list_artifacts(log.run_id, "figures")[0].path == "figures/loss.png"
    assert client.get_run(log.run_id).info.status == "FINISHED"
    assert caplog.text.count("is unreachable, retrying") == 2, "once per outage"

    # Models also go through the server.
    write_finished_project(workspace, log.run_id)
    assert register(LM) == "1"
    assert promote(LM).outcome == "promoted"
    assert client.get_model_version_by_alias(LM, "champion").run_id == log.run_id
    # The files are the server's, whatever happens to the working directory.
    shutil.rmtree(workspace / "models")
    assert load_champion().version == "1"
    assert not (workspace / "mlflow.db").exists()


def test_training_survives_an_outage_and_resend_sends_the_rest(
    one_rank: Any, caplog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run_log, "FLUSH_INTERVAL_S", 0.2)
    monkeypatch.setattr(run_log, "FINISH_PATIENCE_S", 0.5)
    rank = one_rank({"train.max_steps": 6, "train.evaluate_every_steps": 2})
    rank.run.write_config(rank.config)
    log = open_run_log(rank.run, rank.config)
    scored = EnigmaTrainer._nll_nats
    away = pytest.MonkeyPatch()

    def begin_the_outage(self: EnigmaTrainer, index_batches: Any) -> float:
        log._send()
        away.setattr(MlflowClient, "log_batch", fail)
        return scored(self, index_batches)

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the store")

    monkeypatch.setattr(EnigmaTrainer, "_nll_nats", begin_the_outage)
    outcome = rank.train()
    assert outcome == Outcome("finished", 6)
    log.finish("FINISHED")
    rank.run.write_outcome(outcome)
    assert log.num_waiting > 0
    assert "is unreachable, retrying" in caplog.text
    with pytest.raises(UserError, match="is already running it"):
        resend(rank.run.path)
    # The run itself stays locked until the end of the test.
    run = shutil.copytree(rank.run.path, tmp_path / "run")
    with pytest.raises(UserError, match="got no answer"):
        resend(run)
    assert steps_of(log.run_id, "loss/train_loss_nats") == [1, 2]
    away.undo()
    assert resend(run) == log.run_id
    assert steps_of(log.run_id, "loss/train_loss_nats") == list(range(1, 7))
    assert steps_of(log.run_id, "loss/validation_loss_nats") == [2, 4, 6]
    assert MlflowClient(tracking_uri()).get_run(log.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("store", ["http://127.0.0.1:9", "foo://bar", "sqlite:////proc/no/x.db"])
def test_a_store_that_never_answers_stops_nothing(
    workspace: Path, caplog, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setattr(run_log, "FINISH_PATIENCE_S", 0.1)
    log = open_log()
    log.log(1, {"loss": 1.0})
    log.finish("FINISHED")
    assert log.run_id is None
    assert "1 records and 0 files of run train were not sent" in caplog.text
