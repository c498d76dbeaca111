"""A clone of the repository with a real Prefect server, worker and MLflow server.

The stages before the one that a test is about are replaced in the clone's `dvc.yaml`: what
they do is tested elsewhere, and here they would take minutes.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from ruamel.yaml import YAML

from flows.serve import HOST
from pipelines.base.run_stage import QUIET_ENVIRONMENT
from tests.support import REPOSITORY, free_port


class Server:
    """`python -m flows.serve` in a clone, on ports that `prefect.toml` names.

    Args:
        clone: Top of the clone.
        environment: Added to the environment of everything.
    """

    def __init__(self, clone: Path, environment: dict[str, str]) -> None:
        self.clone = clone
        self.ports = (free_port(), free_port())
        toml = clone / "prefect.toml"
        toml.write_text(toml.read_text().replace(":4200/", f":{self.ports[0]}/"))
        self.log = clone.with_name("serve.log")
        self.environment = _environment() | environment
        self.process: psutil.Popen | None = None
        self._shells: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        """Start everything and wait until it is ready."""
        options = ["--prefect-port", str(self.ports[0]), "--mlflow-port", str(self.ports[1])]
        with self.log.open("wb") as stream:
            self.process = psutil.Popen(
                [sys.executable, "-m", "flows.serve", *options],
                cwd=self.clone,
                env=self.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.wait_for(lambda: "Ctrl-C stops everything" in self.log.read_text())

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 300.0) -> None:
        """Wait for something that a flow run or a service does."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(self.log.read_text()[-6000:])
            time.sleep(0.1)

    def run(self, deployment: str, *options: str) -> subprocess.Popen[str]:
        """Run a deployment as a user in a second shell does."""
        shell = subprocess.Popen(
            ["prefect", "deployment", "run", deployment, *options, "--watch"],
            cwd=self.clone,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._shells.append(shell)
        return shell

    def client(self) -> SyncPrefectClient:
        """A client of its API."""
        return SyncPrefectClient(f"http://{HOST}:{self.ports[0]}/api")

    def leave_shells(self) -> None:
        """Close what still watches a run: a test that fails must not make others fail."""
        for shell in self._shells:
            with shell:
                shell.kill()

    def stop(self) -> list[psutil.Process]:
        """End it as Ctrl-C does; what of it still runs."""
        everything = [self.process, *self.process.children(recursive=True)]
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)
        return [one for one in everything if one.is_running()]


def set_graph(clone: Path, keep: Sequence[str], stages: dict[str, Any]) -> None:
    """Write a `dvc.yaml` of some stages as they are, and of stages of a test's own."""
    path = clone / "dvc.yaml"
    yaml = YAML()
    graph = yaml.load(path.read_text(encoding="utf-8"))
    graph["stages"] = {name: graph["stages"][name] for name in keep} | stages
    with path.open("w", encoding="utf-8") as stream:
        yaml.dump(graph, stream)


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFECT_")
        and name not in {"MLFLOW_TRACKING_URI", "ENIGMA_RUNS_DIR", "ENIGMA_STORE_DIR", "PYTHONPATH"}
    }
    binaries = Path(sys.executable).parent
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    # A worker that looks for runs every second, as a test waits for each.
    return {**kept, **QUIET_ENVIRONMENT, "PATH": path, "PREFECT_WORKER_QUERY_SECONDS": "1"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone, of a test module's own."""
    path = tmp_path_factory.mktemp("clone") / "enigma"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def server(clone: Path) -> Iterator[Server]:
    """The services in the clone, running; a test may stop and start them."""
    # A slot of its own: another training on this machine is none of the tests' business.
    found = Server(clone, {"ENIGMA_TRAINING_SLOT": str(clone.with_name("slot"))})
    found.start()
    yield found
    found.leave_shells()
    if found.process.poll() is None:
        found.stop()
