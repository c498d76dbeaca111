"""The run log against real MLflow stores: SQLite, and a server that dies and comes back."""

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
from pipelines.registry.champion import load_champion
from pipelines.registry.names import LM
from pipelines.registry.promote import promote
from pipelines.registry.register import register
from pipelines.runs.directory import Outcome
from pipelines.runs.mlflow_run import open_run_log, resend
from pipelines.tracking import store as tracking
from pipelines.tracking.git_state import GitState
from pipelines.tracking.store import EXPERIMENT, RunLog, connect, tracking_uri
from pipelines.training.trainer import EnigmaTrainer
from tests.finished import write_finished_project
from tests.support import free_port

SETTINGS = {"train": {"epochs": 2, "max_steps": None}}


def open_log(run_id: str | None = None, name: str = "train") -> RunLog:
    return RunLog.open(run_name=name, params=SETTINGS, tags={"profile": "sanguo"}, run_id=run_id)


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


@pytest.fixture
def server(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    directory = tmp_path / "server"
    directory.mkdir()
    server = Server(directory)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    yield server
    server.kill()


def test_a_run_holds_params_metrics_files_data_and_commit(workspace: Path) -> None:
    figure = workspace / "loss.png"
    figure.write_bytes(b"png")
    log = open_log()
    log.log(10, {"train/loss_nats": 5.5, "learning_rate": 1e-3})
    log.log(20, {"train/loss_nats": 4.5})
    log.artifact(figure, "figures")
    log.dataset(name="shards", root="a" * 64, source="data/sanguo/shards", context="training")
    log.finish("FINISHED")

    client = MlflowClient(tracking_uri())
    run = client.get_run(log.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.epochs": "2", "train.max_steps": "None"}
    assert run.data.metrics == {"train/loss_nats": 4.5, "learning_rate": 1e-3}
    assert run.data.tags["profile"] == "sanguo"
    assert run.data.tags["git_commit"] == "unknown"
    assert steps_of(log.run_id, "train/loss_nats") == [10, 20]
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
def test_a_run_that_is_gone_is_replaced(workspace: Path, caplog, deleted: bool) -> None:
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
    assert f"run {run_id} is gone" in caplog.text


def test_values_arrive_while_the_run_goes_on(workspace: Path, monkeypatch) -> None:
    monkeypatch.setattr(tracking, "FLUSH_INTERVAL_S", 0.1)
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
    assert "nothing.png went away" in caplog.text


def test_a_deleted_experiment_is_restored(workspace: Path, caplog) -> None:
    first = open_log()
    first.finish("FINISHED")
    client = MlflowClient(tracking_uri())
    client.delete_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id)
    second = open_log()
    second.finish("FINISHED")
    assert client.get_run(second.run_id).info.status == "FINISHED"
    assert "had been deleted" in caplog.text


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_loses_nothing(
    server: Server, workspace: Path, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(tracking, "FLUSH_INTERVAL_S", 0.2)
    figure = workspace / "loss.png"
    figure.write_bytes(b"png")
    server.start()
    log = open_log()
    log.log(0, {"loss": 10.0})
    log._send()
    assert steps_of(log.run_id, "loss") == [0]
    server.kill()
    for step in range(1, 1500):
        started = time.perf_counter()
        log.log(step, {"loss": 10.0 / step})
        assert time.perf_counter() - started < 0.5, "training waited for the tracking server"
    log.artifact(figure, "figures")
    assert not log._send()
    server.start()
    log.log(1500, {"loss": 0.0})
    log.finish("FINISHED")
    client = MlflowClient(server.uri)
    assert steps_of(log.run_id, "loss") == list(range(1501))
    assert client.list_artifacts(log.run_id, "figures")[0].path == "figures/loss.png"
    assert client.get_run(log.run_id).info.status == "FINISHED"
    assert caplog.text.count("is away, going on") == 1


@pytest.mark.slow
def test_training_outlives_its_server_and_the_same_run_gets_the_rest_afterwards(
    server: Server, one_rank: Any, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(tracking, "FLUSH_INTERVAL_S", 0.2)
    monkeypatch.setattr(tracking, "FINISH_PATIENCE_S", 0.5)
    server.start()
    rank = one_rank({"train.max_steps": 12, "train.evaluate_every_steps": 4})
    rank.run.write_config(rank.config)
    log = open_run_log(rank.run, rank.config)
    scored = EnigmaTrainer._nll_nats

    def kill_the_server(self: EnigmaTrainer, index_batches: Any) -> float:
        log._send()
        server.kill()
        return scored(self, index_batches)

    monkeypatch.setattr(EnigmaTrainer, "_nll_nats", kill_the_server)
    outcome = rank.train(log)
    assert outcome == Outcome("finished", 12)
    log.finish("FINISHED")
    rank.run.write_outcome(outcome)
    assert log.num_waiting > 0
    assert "is away, going on" in caplog.text
    with pytest.raises(UserError, match="is away"):
        resend(rank.run.path)
    server.start()
    assert steps_of(log.run_id, "train_loss_nats") == [1, 2, 3, 4]
    assert resend(rank.run.path) == log.run_id
    assert steps_of(log.run_id, "train_loss_nats") == list(range(1, 13))
    assert steps_of(log.run_id, "validation_loss_nats") == [4, 8, 12]
    assert MlflowClient(server.uri).get_run(log.run_id).info.status == "FINISHED"


def test_a_batch_that_arrived_without_an_answer_is_not_sent_again(workspace: Path) -> None:
    log = open_log()
    log.log(1, {"loss": 1.0})
    log._send()
    # The same values wait again, as after a request whose answer was lost.
    log._seen.clear()
    log._away = True
    log.log(1, {"loss": 1.0})
    log.log(2, {"loss": 2.0})
    log.finish("FINISHED")
    assert steps_of(log.run_id, "loss") == [1, 2]


@pytest.mark.slow
def test_a_run_can_begin_before_its_server_does(server: Server, caplog) -> None:
    log = open_log()
    assert log.run_id is None
    log.log(1, {"loss": 1.0})
    server.start()
    log.finish("FINISHED")
    assert steps_of(log.run_id, "loss") == [1]


def test_models_are_registered_and_promoted_through_a_server(
    server: Server, workspace: Path
) -> None:
    server.start()
    log = open_log()
    log.finish("FINISHED")
    write_finished_project(workspace, log.run_id)
    assert register(LM) == "1"
    assert promote(LM)
    client = MlflowClient(server.uri)
    assert client.get_model_version_by_alias(LM, "champion").run_id == log.run_id
    # The files are the server's, whatever becomes of the working directory.
    shutil.rmtree(workspace / "models")
    assert load_champion().version == "1"
    assert not (workspace / "mlflow.db").exists()


def test_a_server_that_never_comes_stops_nothing(server: Server, caplog, monkeypatch) -> None:
    monkeypatch.setattr(tracking, "FINISH_PATIENCE_S", 1.0)
    log = open_log()
    log.log(1, {"loss": 1.0})
    log.finish("FINISHED")
    assert log.run_id is None
    assert "1 values and 0 files of run train were not sent" in caplog.text


@pytest.mark.slow
def test_five_first_users_of_a_cold_store(workspace: Path) -> None:
    script = (
        "from pipelines.tracking.store import RunLog\n"
        "log = RunLog.open(run_name='cold', params={}, tags={})\n"
        "log.log(1, {'loss': 1.0})\n"
        "log.finish('FINISHED')\n"
        "assert log.run_id, 'not connected'\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(5)
    ]
    outputs = [process.communicate()[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 5, "\n".join(outputs)
    client = MlflowClient(tracking_uri())
    experiments = [e for e in client.search_experiments() if e.name == EXPERIMENT]
    assert len(experiments) == 1
    runs = client.search_runs([experiments[0].experiment_id])
    assert [run.data.metrics for run in runs] == [{"loss": 1.0}] * 5


@pytest.mark.parametrize("store", ["http://127.0.0.1:9", "foo://bar", "sqlite:////proc/no/x.db"])
def test_a_store_that_cannot_be_used_is_named(workspace, monkeypatch, caplog, store) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=f"MLflow store at {store}"):
        connect()
    log = open_log()
    monkeypatch.setattr(tracking, "FINISH_PATIENCE_S", 0.1)
    log.log(1, {"loss": 1.0})
    log.finish("FINISHED")
    assert "is away, going on" in caplog.text


def test_a_damaged_store_stops_commands_but_not_runs(workspace: Path, monkeypatch) -> None:
    (workspace / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="cannot be used"):
        connect()
    monkeypatch.setattr(tracking, "FINISH_PATIENCE_S", 0.1)
    log = open_log()
    log.finish("FINISHED")
    assert log.run_id is None


def git(directory: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", str(directory), *who, *arguments], check=True, capture_output=True)


def test_git_state(tmp_path: Path) -> None:
    assert GitState.read(tmp_path) == GitState("unknown", "unknown")
    git(tmp_path, "init", "--quiet")
    assert GitState.read(tmp_path) == GitState("unknown", "unknown")
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    (tmp_path / "untracked.txt").write_text("x")
    clean = GitState.read(tmp_path)
    assert len(clean.commit) == 40
    assert clean.dirty == "false"
    (tmp_path / "a.txt").write_text("two")
    assert GitState.read(tmp_path) == GitState(clean.commit, "true")
