"""Flow runs on a real server with a real worker, in a clone."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.serve import HOST
from tests.support import REPOSITORY

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


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


class Server:
    """`python -m flows.serve` in a clone, on ports that `prefect.toml` names."""

    def __init__(self, clone: Path) -> None:
        self.clone = clone
        self.ports = (free_port(), free_port())
        toml = clone / "prefect.toml"
        toml.write_text(toml.read_text().replace(":4200/", f":{self.ports[0]}/"))
        self.log = clone.with_name("serve.log")
        options = ["--prefect-port", str(self.ports[0]), "--mlflow-port", str(self.ports[1])]
        with self.log.open("wb") as stream:
            self.process = psutil.Popen(
                [sys.executable, "-m", "flows.serve", *options],
                cwd=clone,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def wait(self, timeout_s: float = 240.0) -> None:
        deadline = time.monotonic() + timeout_s
        while "Ctrl-C stops everything" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(self.log.read_text()[-4000:])
            time.sleep(0.2)

    def run(self, deployment: str, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["prefect", "deployment", "run", deployment, *options, "--watch"],
            cwd=self.clone,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.mark.slow
def test_a_second_shell_runs_deployments_and_sees_how_they_end(clone: Path) -> None:
    server = Server(clone)
    try:
        server.wait()
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=clone, capture_output=True, check=True
        ).stdout
        good = server.run("ingest/sanguo")
        bad = server.run("ingest/wiki-zh", "-p", f"source={clone}/没有.parquet")
        good_output, bad_output = good.communicate()[0], bad.communicate()[0]
        assert good.returncode == 0, good_output
        assert "120 documents" in good_output
        assert bad.returncode == 1, bad_output
        # The terminal's width breaks lines, also within the reason.
        assert "没有.parquet" in re.sub(r"\s+", "", bad_output)
        assert "Failed" in bad_output
        checkouts = clone / ".enigma" / "worktrees"
        assert (checkouts / "sanguo" / "data" / "sanguo" / "raw" / "manifest.json").is_file()
        assert not (checkouts / "wiki-zh" / "data" / "wiki-zh" / "raw").exists()
        after = subprocess.run(
            ["git", "status", "--porcelain"], cwd=clone, capture_output=True, check=True
        ).stdout
        assert after == status, "the developer's working tree must stay as it was"
    finally:
        everything = [server.process, *server.process.children(recursive=True)]
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(120)
    assert server.process.returncode == 0
    assert not [one for one in everything if one.is_running()], "nothing may outlive it"
