"""`python -m flows.serve` refuses what cannot work, before anything starts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows.running.only_server import DATABASE, database_url, lock_of, only_server
from flows.serve import HOST, check_port
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
    assert option in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone / ".prefect" / "prefect.db").exists()
    assert not (clone / "mlflow.db").exists()


def test_a_second_server_of_one_database_is_refused_on_any_port(clone: Path) -> None:
    def serve() -> subprocess.CompletedProcess[str]:
        ports = (free_port(), free_port())
        words = ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
        return subprocess.run(
            [sys.executable, "-m", "flows.serve", *words],
            cwd=clone, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    database = database_url({}, clone / ".prefect")
    with only_server(database, print):
        done = serve()
    assert done.returncode == 1
    assert f"process {os.getpid()} " in done.stderr
    assert "use that server" in done.stderr
    assert not (clone / "mlflow.db").exists()
    (clone / ".git").rename(clone / "git")
    done = serve()
    assert done.returncode == 1
    assert "git init && git add . && git commit" in done.stderr


def test_one_lock_per_database(tmp_path: Path) -> None:
    own = lock_of(database_url({}, tmp_path / "a?b"))
    assert own == tmp_path / "a?b" / "prefect.db.serve.lock"
    server = {DATABASE: "postgresql+asyncpg://enigma:secret@127.0.0.1/prefect"}
    shared = lock_of(database_url(server, tmp_path))
    assert shared == lock_of(database_url(server, tmp_path / "other"))
    assert "secret" not in str(shared)
