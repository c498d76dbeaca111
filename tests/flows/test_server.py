"""Flow runs on a real server with a real worker: they end, are cancelled, crash and resume."""

import http.client
import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Completed

from flows.running.checkout import Checkout
from flows.running.stages import run_stage
from flows.serve import HOST
from pipelines.base.artifacts import sha256_file
from pipelines.tracking.store import EXPERIMENT, connect
from tests.flows.conftest import set_graph
from tests.support import TINY_RUN, change_params

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CANCEL_WITHIN_S = 15.0
ENDLESS = {
    **TINY_RUN,
    "train.epochs": 100_000,
    "train.max_steps": 100_000_000,
    "train.evaluate_every_steps": 20,
    "train.early_stopping_patience": 100_000,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source outside the repository."""
    path = tmp_path_factory.mktemp("source") / "text.jsonl"
    path.write_text('{"id": "1", "text": "分久必合"}', encoding="utf-8")
    return path


def test_a_second_shell_runs_deployments_and_sees_how_they_end(server: Any, text: Path) -> None:
    clone = server.clone
    status = git_status(clone)
    good = server.run("ingest/sanguo", "-p", f"source={text}")
    bad = server.run("ingest/wiki-zh", "-p", f"source={clone}/没有.parquet")
    good_output, bad_output = good.communicate()[0], bad.communicate()[0]
    assert good.returncode == 0, good_output
    assert "1 documents" in good_output
    assert bad.returncode == 1, bad_output
    # The terminal's width breaks lines, also within the reason.
    assert "没有.parquet" in re.sub(r"\s+", "", bad_output)
    assert "Failed" in bad_output
    assert "notification: ingest/wiki-zh" in server.log.read_text() + bad_output
    assert ingested(clone) == sha256_file(text)
    assert not (clone / ".enigma" / "worktrees" / "wiki-zh" / "data" / "wiki-zh" / "raw").exists()
    assert git_status(clone) == status, "the developer's working tree must stay as it was"
    # The run is a commit on top of the developer's, with its parameters and outputs.
    references = git(clone, "for-each-ref", "--format=%(refname)", "refs/exps").split()
    # References below refs/exps/exec are DVC's own.
    [experiment] = [one for one in references if not one.startswith("refs/exps/exec/")]
    assert git(clone, "merge-base", experiment, "HEAD") == git(clone, "rev-parse", "HEAD")
    assert "profile: sanguo" in git(clone, "show", f"{experiment}:params.yaml")
    assert "data/sanguo/raw" in git(clone, "show", f"{experiment}:dvc.lock")


def test_a_refresh_reads_a_source_that_dvc_does_not_watch(server: Any, text: Path) -> None:
    """The text that the test before has ingested has another content now."""
    text.write_text('{"id": "1", "text": "合久必分"}', encoding="utf-8")
    run = server.run("ingest/sanguo", "-p", f"source={text}", "-p", "refresh=true")
    output = run.communicate()[0]
    assert run.returncode == 0, output
    assert ingested(server.clone) == sha256_file(text)


def ingested(clone: Path) -> str:
    """The digest of the source that the checkout of `sanguo` has read."""
    raw = clone / ".enigma" / "worktrees" / "sanguo" / "data" / "sanguo" / "raw"
    return json.loads((raw / "manifest.json").read_text())["sources"][0]["sha256"]


STAGE = """
import os, pathlib, signal, sys
tries = pathlib.Path("tries")
before = tries.read_text() if tries.exists() else ""
tries.write_text(before + "x")
if sys.argv[1] == "refuses":
    sys.exit("error: no rows")
if not before:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("stage", "state", "tries"), [("dies", "Completed", 2), ("refuses", "Refused", 1)]
)
def test_a_stage_that_died_is_tried_again_and_one_that_refused_is_not(
    server: Any, tmp_path: Path, stage: str, state: str, tries: int
) -> None:
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(f"stages: {{{stage}: {{cmd: python stage.py {stage}}}}}")
    subprocess.run(["dvc", "init", "--quiet", "--no-scm"], cwd=tmp_path, check=True)
    ended: list[State[Any]] = []
    with (tmp_path / "lock").open("w") as lock:
        checkout = Checkout(tmp_path, tmp_path, baseline="a" * 40, lock=lock.fileno())

        @flow
        def one_stage() -> State[Any]:
            task = run_stage.with_options(retry_delay_seconds=0)
            ended.append(task(stage, "sanguo", checkout, return_state=True))
            return Completed()

        with temporary_settings({PREFECT_API_URL: f"http://{HOST}:{server.ports[0]}/api"}):
            one_stage()
    assert [one.name for one in ended] == [state]
    assert (tmp_path / "tries").read_text() == "x" * tries, "a retry finds what was left"


def test_every_server_listens_on_the_loopback_address_only(server: Any) -> None:
    found = {
        connection.laddr.ip
        for process in server.process.children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert found == {HOST}


def test_mlflow_answers_only_to_its_own_name(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = {}
    for host in (f"{HOST}:{server.ports[1]}", "evil.example"):
        connection = http.client.HTTPConnection(HOST, server.ports[1], timeout=30)
        connection.request("GET", "/", headers={"Host": host})
        statuses[host] = connection.getresponse().status
        connection.close()
    assert list(statuses.values()) == [200, 403]
    assert "Warning" not in server.log.read_text(), "that of somebody else's library"
    # A store whose server is away is refused with the advice to start it: here one runs.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{HOST}:{server.ports[1]}")
    monkeypatch.setenv("ENIGMA_STORE_DIR", str(tmp_path))
    assert connect().get_experiment_by_name(EXPERIMENT) is not None


def test_a_page_of_another_site_cannot_use_the_api(server: Any) -> None:
    own = f"http://localhost:{server.ports[0]}"
    asks = {"Access-Control-Request-Method": "POST"}
    allowed = {}
    for origin in (own, "https://evil.example"):
        status, headers = ask(server, "OPTIONS", {"Origin": origin, **asks})
        allowed[origin] = (status, headers.get("access-control-allow-origin"))
    assert allowed == {own: (200, own), "https://evil.example": (400, None)}
    # A form is sent without asking first; a client of Prefect's own fetches a token for it.
    assert ask(server, "POST", {"Origin": "https://evil.example"})[0] == 403
    with server.client() as client:
        assert client.read_deployments()


def ask(server: Any, method: str, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection(HOST, server.ports[0], timeout=30)
    connection.request(method, "/api/deployments/filter", headers=headers)
    answer = connection.getresponse()
    found = {name.lower(): value for name, value in answer.getheaders()}
    connection.close()
    return answer.status, found


TINY_SHARDS = {
    "cmd": "python -c 'from tests.support import make_tiny_shards; make_tiny_shards()'",
    "deps": ["tests/support.py"],
    "outs": ["data/${profile}/shards", "reports/${profile}/validate"],
}


@pytest.fixture(scope="module")
def endless(server: Any) -> None:
    """A real training that never ends, on shards that are made in a second."""
    change_params(server.clone / "params.yaml", ENDLESS)
    set_graph(server.clone, ["train"], {"shards": TINY_SHARDS})


def test_a_cancelled_run_ends_within_seconds_and_the_next_one_resumes(
    server: Any, endless: None
) -> None:
    first = server.run("train/sanguo")
    wait_for_checkpoint(server, first, later_than=0)
    tree = training_processes(server.clone)
    assert len(tree) >= 4, "a supervisor, DVC, the stage, torchrun, a rank"
    with server.client() as client:
        run = newest_run(client)
        client.set_flow_run_state(run.id, Cancelling(), force=True)
        began_s = time.monotonic()
        server.wait_for(lambda: not training_processes(server.clone), CANCEL_WITHIN_S)
        elapsed_s = time.monotonic() - began_s
        first.communicate()
        assert first.returncode == 1
        server.wait_for(lambda: client.read_flow_run(run.id).state.type == "CANCELLED")
    assert elapsed_s < CANCEL_WITHIN_S
    # It saved a checkpoint when it was cancelled.
    step = max(checkpoints(server.clone))
    before = metrics(server.clone, until=step)
    second = server.run("train/sanguo")
    wait_for_checkpoint(server, second, later_than=step)
    # The recorded speeds of the steps before are those of the first run: none was repeated.
    assert metrics(server.clone, until=step) == before
    assert second.poll() is None


def test_after_a_crash_of_everything_the_run_is_marked_and_resumes(
    server: Any, endless: None
) -> None:
    """The training of the test before still runs when worker and servers are killed."""
    clone = server.clone
    step = max(checkpoints(clone))
    training = training_processes(clone)
    assert training
    for victim in [server.process, *server.process.children(recursive=True)]:
        if victim not in training:
            kill(victim)
    server.process.wait(30)
    deadline = time.monotonic() + 30
    while training_processes(clone):
        assert time.monotonic() < deadline, "the training outlived its worker"
        time.sleep(0.1)
    before = metrics(clone, until=step)
    server.start()
    assert "was interrupted: it is marked as crashed" in server.log.read_text()
    with server.client() as client:
        assert newest_run(client).state.type == "CRASHED"
    run = server.run("train/sanguo")
    wait_for_checkpoint(server, run, later_than=max(checkpoints(clone)))
    assert metrics(clone, until=step) == before
    assert server.stop() == [], "nothing may outlive it"
    assert server.process.returncode == 0
    assert not training_processes(clone)


def git(clone: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=clone, capture_output=True, check=True, text=True
    ).stdout.strip()


def git_status(clone: Path) -> str:
    return git(clone, "status", "--porcelain")


def newest_run(client: SyncPrefectClient) -> FlowRun:
    runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_="")))
    return max(runs, key=lambda run: run.created)


def training_processes(clone: Path) -> set[psutil.Process]:
    """Every process in the checkout: the stage, torchrun, its ranks, DVC, supervisor."""
    found = set()
    for process in psutil.process_iter():
        try:
            inside = Path(process.cwd()).is_relative_to(clone / ".enigma")
            if inside and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return found


def kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def checkpoints(clone: Path) -> list[int]:
    found = clone.glob("runs/*/checkpoints/checkpoint-*/manifest.json")
    return [int(path.parent.name.removeprefix("checkpoint-")) for path in found]


def wait_for_checkpoint(server: Any, run: subprocess.Popen[str], *, later_than: int) -> None:
    def saved() -> bool:
        assert run.poll() is None, run.communicate()[0][-4000:]
        return max(checkpoints(server.clone), default=0) > later_than

    server.wait_for(saved)


def metrics(clone: Path, *, until: int) -> list[dict[str, float]]:
    [path] = clone.glob("runs/*/metrics.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [record for record in records if record["step"] <= until]
