"""`python -m flows.serve` refuses what cannot work, before anything starts."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows.running.only_server import DATABASE, database_url, lock_of, only_server
from flows.serve import HOST, Ports, check_port, check_ports, serve
from pipelines.base.errors import UserError
from tests.support import REPOSITORY, free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("PREFECT_") or name in ("MLFLOW_TRACKING_URI", "ENIGMA_RUNS_DIR"):
            monkeypatch.delenv(name)
    binaries = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "enigma"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(path)], check=True)
    return path


@pytest.mark.parametrize("port", [0, 70000])
def test_a_port_is_a_port(port: int) -> None:
    with pytest.raises(UserError, match="--mlflow-port: expected 1 to 65535"):
        check_port(port, "the MLflow UI", "--mlflow-port")


@pytest.mark.parametrize("last", [False, True])
def test_the_two_servers_take_two_ports(last: bool) -> None:
    port = 65535 if last else free_port()
    with pytest.raises(UserError, match="expected another port than the Prefect") as refusal:
        check_ports(Ports(port, port))
    advised = int(refusal.value.fix.split("`")[1].split()[-1])
    check_ports(Ports(port, advised))


def test_the_address_of_another_mlflow_server_is_no_database(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://li:secret@127.0.0.1:5000")
    with pytest.raises(UserError, match="expected a database") as refusal:
        serve(clone, Ports(free_port(), free_port()))
    assert "secret" not in str(refusal.value)
    assert refusal.value.fix.startswith("unset MLFLOW_TRACKING_URI")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    database = database_url({}, clone / ".prefect")
    with only_server(database, print), pytest.raises(UserError, match="expected no other server"):
        serve(clone, Ports(free_port(), free_port()))


@pytest.mark.parametrize("store", ["./mlruns", "nothing://li:secret@127.0.0.1/mlflow"])
def test_a_store_that_cannot_be_opened_is_named_as_elsewhere(
    clone: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    words = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    done = subprocess.run(
        [sys.executable, "-m", "flows.serve", *words],
        cwd=clone, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: expected a usable MLflow store at ")
    assert "secret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "set MLFLOW_TRACKING_URI to another store" in done.stderr


@pytest.mark.parametrize("option", ["--prefect-port", "--mlflow-port"])
def test_a_port_in_use_is_named_and_nothing_starts(clone: Path, option: str) -> None:
    ports = {"--prefect-port": free_port(), "--mlflow-port": free_port()}
    with socket.socket() as other:
        other.bind((HOST, ports[option]))
        other.listen()
        words = [word for name, port in ports.items() for word in (name, str(port))]
        done = subprocess.run(
            [sys.executable, "-m", "flows.serve", *words],
            cwd=clone,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert f"port {ports[option]}" in done.stderr
    assert f"`python -m flows.serve {option} {ports[option] + 1}`" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone / ".prefect" / "prefect.db").exists()
    assert not (clone / "mlflow.db").exists()


def test_a_second_server_of_one_database_is_refused_on_any_port(clone: Path) -> None:
    ports = Ports(free_port(), free_port())
    words = ["--prefect-port", str(ports.prefect), "--mlflow-port", str(ports.mlflow)]
    database = database_url({}, clone / ".prefect")
    with only_server(database, print):
        done = subprocess.run(
            [sys.executable, "-m", "flows.serve", *words],
            cwd=clone, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"process {os.getpid()} " in done.stderr
    assert "use that server" in done.stderr
    assert not (clone / "mlflow.db").exists()
    shutil.rmtree(clone / ".git")
    with pytest.raises(UserError, match=r"found no \.git") as refusal:
        serve(clone, ports)
    advice = refusal.value.fix.partition("for a copy without it: ")[2]
    who = {
        f"GIT_{role}_{name}": "t" for role in ("AUTHOR", "COMMITTER") for name in ("NAME", "EMAIL")
    }
    subprocess.run(["bash", "-c", advice], cwd=clone, env={**os.environ, **who}, check=True)
    # It comes as far as the lock.
    with only_server(database, print), pytest.raises(UserError, match="expected no other server"):
        serve(clone, ports)


def test_one_lock_per_database(tmp_path: Path) -> None:
    own = lock_of(database_url({}, tmp_path / "a?b"))
    assert own == tmp_path / "a?b" / "prefect.db.serve.lock"
    server = {DATABASE: "postgresql+asyncpg://enigma:secret@127.0.0.1/prefect"}
    shared = lock_of(database_url(server, tmp_path))
    assert shared == lock_of(database_url(server, tmp_path / "other"))
    assert "secret" not in str(shared)
