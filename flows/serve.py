"""Prefect server, a worker and the MLflow UI on 127.0.0.1: `make serve`.

    python -m flows.serve [--prefect-port 4200] [--mlflow-port 5000]

Applies `prefect.yaml` and stays until Ctrl-C, TERM, or the end of one of the three. Each
runs under the supervisor, so none of them outlives this process. A store has one such server:
a lock beside Prefect's database is held until the last of its processes has ended.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import psutil

from flows.running.checkout import tracking_store
from flows.running.command import reason_of
from flows.running.only_server import DATABASE, database_url, only_server
from flows.running.record import MLFLOW_URL
from flows.running.supervisor import read_lines, start_supervised, stop
from pipelines.base.errors import UserError
from pipelines.base.run_stage import QUIET_ENVIRONMENT, run_stage

HOST = "127.0.0.1"
POOL = "enigma"
START_TIMEOUT_S = 180.0
POLL_S = 0.5
LOOK_AGAIN_S = 30.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Flow runs of the worker first end their own stages and then report to the server; a third
# of this is enough for a stage whose worker has died.
STOP_GRACE_S = 39.0


@dataclass(frozen=True)
class Ports:
    """The ports on which the two servers listen."""

    prefect: int
    mlflow: int

    @property
    def prefect_url(self) -> str:
        """Address of the Prefect UI; the API is below it."""
        return f"http://{HOST}:{self.prefect}"

    @property
    def mlflow_url(self) -> str:
        """Address of the MLflow UI."""
        return f"http://{HOST}:{self.mlflow}"


@dataclass
class Services:
    """The running processes, in the order of their start."""

    repository: Path
    environment: Mapping[str, str]
    lock: int
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a service; its output appears here under its name."""
        process = start_supervised(
            command,
            cwd=self.repository,
            env=self.environment,
            grace_s=STOP_GRACE_S,
            keep_open=[self.lock],
        )
        self.running[name] = process
        threading.Thread(target=_show, args=(name, process), daemon=True).start()

    def run(self, command: Sequence[str]) -> None:
        """Run a command to its end.

        Raises:
            UserError: If it fails, with its output.
        """
        done = subprocess.run(
            command,
            cwd=self.repository,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            reason, explained = reason_of(done.stdout.splitlines(), done.returncode)
            problem, _, fix = (reason if explained else "").partition("\n  to fix this: ")
            raise UserError(
                problem or f"`{' '.join(command)}` failed:\n{done.stdout.strip()}",
                fix or "correct what its output names, and start again",
            )

    def check(self) -> None:
        """Check that every service still runs.

        Raises:
            UserError: If one has ended.
        """
        for name, process in self.running.items():
            if (code := process.poll()) is not None:
                raise UserError(
                    f"expected {name} to keep running, but it ended with exit code {code}; "
                    "the rest was stopped",
                    f"read its lines above ([{name}]), and start again",
                )

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Wait for something that a service does.

        Raises:
            UserError: If it takes too long, or a service ends meanwhile.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise UserError(
                    f"expected {what} within {START_TIMEOUT_S:.0f} s, it is not ready",
                    "read the lines above, and start again",
                )
            time.sleep(POLL_S)

    def stop_all(self) -> None:
        """End them, the last one first: the worker reports to the server how its runs ended."""
        for process in reversed(self.running.values()):
            stop(process)


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve")
    parser.add_argument("--prefect-port", type=int, default=4200)
    parser.add_argument("--mlflow-port", type=int, default=5000)
    options = parser.parse_args()
    serve(Path.cwd(), Ports(options.prefect_port, options.mlflow_port))


def serve(repository: Path, ports: Ports) -> None:
    """Start the services, print their addresses, and stay until a signal to stop.

    Args:
        repository: The top of the repository.
        ports: The ports to listen on.

    Raises:
        UserError: If this is not the top of a git repository, if another server of the store
            runs or a port is in use (then nothing is started), or if a service does not start
            or dies.
    """
    if not (repository / "prefect.yaml").is_file():
        raise UserError(
            f"expected prefect.yaml in {repository}, found no such file",
            "run the command from the top of the repository",
        )
    if not (repository / ".git").exists():
        raise UserError(
            f"expected a git repository in {repository}, found no .git (flows work in a checkout "
            "of it, and record its commit)",
            "clone the repository; or, for a copy without it: git init && git add . && "
            "git commit -m 'first commit'",
        )
    environment = service_environment(repository, ports)
    if environment["MLFLOW_BACKEND_STORE_URI"].startswith(("http://", "https://")):
        raise UserError(
            "MLFLOW_TRACKING_URI: expected a database for the MLflow server, got the address of "
            "another server",
            "unset MLFLOW_TRACKING_URI: runs are kept in mlflow.db here; or name a database in it",
        )
    with only_server(environment[DATABASE], _say) as lock:
        check_ports(ports)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.default_int_handler)
        services = Services(repository, environment, lock)
        try:
            left = start_all(services, ports)
            _say(_welcome(ports))
            stay(services, ports, left)
        except KeyboardInterrupt:
            _say("stopping")
        finally:
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            services.stop_all()
            _say("stopped")


def stay(services: Services, ports: Ports, left: set[UUID]) -> None:
    """Watch the services until one ends.

    Args:
        services: The running processes.
        ports: Where they listen.
        left: Flow runs of an earlier worker that were still alive; their end is awaited.

    Raises:
        UserError: If a service has ended.
    """
    looked_s = time.monotonic()
    while True:
        services.check()
        time.sleep(POLL_S)
        if left and time.monotonic() - looked_s > LOOK_AGAIN_S:
            looked_s = time.monotonic()
            left = _reconcile(ports, only=left)


def start_all(services: Services, ports: Ports) -> set[UUID]:
    """Start the three services, one after the other, and apply `prefect.yaml`.

    Returns:
        The flow runs of an earlier worker that are still alive.
    """
    from flows.running.reconcile import pool_exists

    api = f"{ports.prefect_url}/api"
    python = [sys.executable, "-m"]
    _say("starting MLflow and Prefect, which takes about 20 seconds")
    services.run([sys.executable, "-c", INITIALISE_MLFLOW])
    listen = ["--host", HOST, "--port"]
    quiet = ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    # MLflow and its children print warnings about the libraries that they use.
    mlflow = ["env", "PYTHONWARNINGS=ignore", *python, "mlflow", "server", *quiet]
    services.start("mlflow", [*mlflow, *listen, str(ports.mlflow)])
    services.start("server", [*python, "prefect", "server", "start", *listen, str(ports.prefect)])
    services.wait_until(lambda: answers(f"{api}/health"), "the Prefect server")
    left = _reconcile(ports)
    worker = ["worker", "start", "--pool", POOL, "--type", "process", "--name", worker_name()]
    services.start("worker", [*python, "prefect", *worker])
    services.wait_until(lambda: pool_exists(api, POOL), f"the work pool {POOL}")
    services.run([*python, "prefect", "--no-prompt", "deploy", "--all"])
    services.wait_until(lambda: answers(f"{ports.mlflow_url}/health"), "the MLflow UI")
    return left


def worker_name() -> str:
    """Name the worker of this server, unlike that of another machine with the same database."""
    return f"{POOL}-{socket.gethostname()}"


def _reconcile(ports: Ports, only: set[UUID] | None = None) -> set[UUID]:
    """Mark the flow runs that were interrupted; return those that are still alive."""
    from flows.running.reconcile import reconcile

    found = reconcile(f"{ports.prefect_url}/api", POOL, worker_name(), only)
    for run in found.crashed:
        _say(f"flow run {run} was interrupted: it is marked as crashed now, start it again")
    if found.alive and only is None:
        _say(f"{len(found.alive)} flow runs of another worker are still running")
    return found.alive


# The store is made under a lock, before several processes can try to make it.
INITIALISE_MLFLOW = """
from pipelines.base.run_stage import run_stage
from pipelines.tracking.store import connect
run_stage(connect)
"""


def service_environment(repository: Path, ports: Ports) -> dict[str, str]:
    """Return the environment of the services, and so of the flow runs that the worker starts."""
    local = ",".join(filter(None, [os.environ.get("NO_PROXY"), HOST, "localhost"]))
    binaries = str(Path(sys.executable).parent)
    own = [f"http://{name}:{ports.prefect}" for name in (HOST, "localhost")]
    return {
        **QUIET_ENVIRONMENT,
        # Otherwise a page of any site in a browser on this machine could start and read runs.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(own),
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        # The flows of this repository, whatever else is installed.
        "PYTHONPATH": str(repository),
        "PYTHONUNBUFFERED": "1",
        "PREFECT_HOME": str(repository / ".prefect"),
        DATABASE: database_url(os.environ, repository / ".prefect"),
        "PREFECT_API_URL": f"{ports.prefect_url}/api",
        "MLFLOW_TRACKING_URI": tracking_store(repository),
        # Not as an option: every user of the machine can read a command line and a password in it.
        "MLFLOW_BACKEND_STORE_URI": tracking_store(repository),
        MLFLOW_URL: ports.mlflow_url,
        "NO_PROXY": local,
        "no_proxy": local,
    }


def check_ports(ports: Ports) -> None:
    """Refuse ports that are in use or the same.

    Raises:
        UserError: At the first one.
    """
    check_port(ports.prefect, "the Prefect server", "--prefect-port")
    check_port(ports.mlflow, "the MLflow UI", "--mlflow-port")
    if ports.mlflow == ports.prefect:
        raise UserError(
            f"--mlflow-port: expected another port than the Prefect server's, got {ports.mlflow}",
            f"choose another port: `python -m flows.serve --mlflow-port {_other(ports.mlflow)}`",
        )


def _other(port: int) -> int:
    return port + 1 if port < 65535 else 1024


def check_port(port: int, service: str, option: str) -> None:
    """Refuse a port on which another process listens.

    Args:
        port: On 127.0.0.1.
        service: The service that needs it.
        option: The option that chooses another one.

    Raises:
        UserError: If it is in use or not a port number.
    """
    if not 1 <= port <= 65535:
        raise UserError(f"{option}: expected 1 to 65535, got {port}", "choose another port")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} of {HOST} is in use{_holder(port)}; {service} needs it ({error})",
                f"stop that process, or choose another port: "
                f"`python -m flows.serve {option} {_other(port)}`",
            ) from None


def _holder(port: int) -> str:
    """Return which process listens on a port, if this user may know."""
    try:
        for found in psutil.net_connections("tcp"):
            listens = found.status == psutil.CONN_LISTEN and found.pid
            if listens and found.laddr and found.laddr.port == port:
                return f" by process {found.pid} ({psutil.Process(found.pid).name()})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return ""
    return ""


def answers(url: str) -> bool:
    """Return whether a server answers a GET with success."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _show(name: str, process: subprocess.Popen[bytes]) -> None:
    for line in read_lines(process):
        # Nobody may be reading this any more (`make serve | head`). The service must not stop
        # because its own output is read no further.
        with contextlib.suppress(OSError, ValueError):
            _say(f"[{name}] {line}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _welcome(ports: Ports) -> str:
    other = "" if ports.prefect == 4200 else f"PREFECT_API_URL={ports.prefect_url}/api "
    return f"""
Prefect   {ports.prefect_url}
MLflow    {ports.mlflow_url}

In a second terminal, in this directory and with the virtual environment active:
  {other}prefect deployment run train/sanguo --watch
Ctrl-C stops everything; an interrupted run resumes when it is started again.
"""


if __name__ == "__main__":
    run_stage(main)
