"""Operate `pipeline/sanguo` on a schedule while faults are injected, and check what is left.

    OMP_NUM_THREADS=1 python -m benchmarks.operations.soak                   # three hours
    python -m benchmarks.operations.soak --minutes 12 --every 3 --fault-every 1 --tiny

`flows.serve` runs in a clone of the repository and is started again when it has ended, as a
service manager would. Every few minutes a run of `pipeline/sanguo` is due, with other
parameters each time; in between a random fault of `benchmarks/operations/faults.py` happens. At
the end the faults stop, and one more run resumes what was interrupted. Then must hold: that run
completes, no process is left over, every flow run is in a final state, the results of every
completed run can be retrieved, the ledger explains every promotion, and the servers' memory is
flat. `--tiny` trains a tiny model for real and takes finished reports for the rest.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import LogSort
from ruamel.yaml import YAML

from benchmarks.operations.faults import Faults
from benchmarks.operations.tiny_project import make_tiny
from benchmarks.record import row, write
from pipelines.base.run_stage import QUIET_ENVIRONMENT
from tests.support import REPOSITORY, change_params, free_port

FINAL = {StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED}
FINISH_WITHIN_S = 1800.0
SAMPLE_S = 15.0
MIB = 2**20
ANCHOR = "2020-01-01T00:00:00+00:00"
SERVERS = {"server": "prefect server start", "worker": "worker start", "mlflow": "mlflow server"}


class Operation:
    """A clone in operation: `flows.serve`, started again whenever it has ended.

    Args:
        home: An empty directory.
        options: Of the command line.
    """

    def __init__(self, home: Path, options: argparse.Namespace) -> None:
        self.clone = home / "enigma"
        self.log = home / "serve.log"
        self.ports = (free_port(), free_port())
        self.starts = 0
        self.memory_mib: dict[tuple[str, int], list[float]] = {}
        self._process: psutil.Popen | None = None
        kept = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
        for name in ("MLFLOW_TRACKING_URI", "ENIGMA_RUNS_DIR", "ENIGMA_STORE_DIR"):
            kept.pop(name, None)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = kept | QUIET_ENVIRONMENT | {
            "PATH": path, "PYTHONPATH": str(self.clone),
            "ENIGMA_TRAINING_SLOT": str(home / "slot"),
        }  # fmt: skip
        run(["git", "clone", "--quiet", REPOSITORY, self.clone], home, self.environment)
        toml = self.clone / "prefect.toml"
        toml.write_text(toml.read_text().replace(":4200/", f":{self.ports[0]}/"))
        self._schedule(options)
        if options.tiny:
            make_tiny(self.clone)

    def _schedule(self, options: argparse.Namespace) -> None:
        path = self.clone / "prefect.yaml"
        yaml = YAML()
        settings = yaml.load(path.read_text())
        for deployment in settings["deployments"]:
            if (
                deployment["entrypoint"].startswith("flows.pipeline")
                and "sanguo" in deployment["tags"]
            ):
                # Without an anchor the interval would begin anew with every start of `serve`.
                deployment["schedules"] = [{
                    "interval": int(60 * options.every), "anchor_date": ANCHOR, "active": True,
                }]  # fmt: skip
                extra = {} if options.tiny else {"steps": options.steps}
                deployment["parameters"] = {"profile": "sanguo", "allow_tie": True, **extra}
        with path.open("w") as stream:
            yaml.dump(settings, stream)

    def serve(self) -> psutil.Process | None:
        """The present process of `flows.serve`."""
        return self._process

    def keep_up(self) -> None:
        """Start `flows.serve` if it does not run."""
        if self._process is None or self._process.poll() is not None:
            if self._process is not None:
                say(f"serve ended with {self._process.returncode}; it is started again")
            self.starts += 1
            options = ["--prefect-port", str(self.ports[0]), "--mlflow-port", str(self.ports[1])]
            with self.log.open("ab") as stream:
                self._process = psutil.Popen(
                    [sys.executable, "-m", "flows.serve", *options],
                    cwd=self.clone, env=self.environment, stdout=stream, stderr=subprocess.STDOUT,
                )  # fmt: skip

    def change_seed(self, seed: int) -> None:
        """Give the next run something new to train."""
        change_params(self.clone / "params.yaml", {"train.seed": seed})

    def sample_memory(self, processes: list[psutil.Process]) -> None:
        """Note the memory of each server."""
        for process in processes:
            try:
                words, memory = " ".join(process.cmdline()), process.memory_info().rss / MIB
            except psutil.Error:
                continue
            for name, part in SERVERS.items():
                if part in words and "supervisor.py" not in words:
                    self.memory_mib.setdefault((name, process.pid), []).append(memory)

    def client(self) -> SyncPrefectClient:
        """A client of its API."""
        return SyncPrefectClient(f"http://127.0.0.1:{self.ports[0]}/api")

    def start_run(self) -> FlowRun:
        """Start a run, as the message about an interrupted one says."""
        with self.client() as client:
            deployment = client.read_deployment_by_name("pipeline/sanguo")
            return client.create_flow_run_from_deployment(deployment.id)

    def runs(self, *, quiet: bool = False) -> list[FlowRun]:
        """All flow runs that the server knows; empty while it is away."""
        found: list[FlowRun] = []
        try:
            with self.client() as client:
                while page := client.read_flow_runs(offset=len(found)):
                    found += page
        except Exception as error:  # noqa: BLE001 - a server that a fault has hit answers anything
            if not quiet:
                say(f"the server does not answer ({type(error).__name__})")
            return []
        return found

    def stop(self) -> None:
        """End it as a service manager does."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(120)


def soak(operation: Operation, faults: Faults, options: argparse.Namespace) -> Counter[str]:
    """Operate with faults for the time asked for; return how often each happened."""
    generator = random.Random(options.seed)
    # The first start makes the databases: minutes on a busy machine.
    while not operation.runs(quiet=True):
        operation.keep_up()
        time.sleep(2.0)
    say("the server is up")
    began_s = time.monotonic()
    next_fault_s, next_seed_s, next_sample_s = 60.0 * options.fault_every, 0.0, 0.0
    seed, done = 0, Counter[str]()
    waiting: list[str] = []
    while (elapsed_s := time.monotonic() - began_s) < 60 * options.minutes:
        operation.keep_up()
        if elapsed_s >= next_seed_s:
            seed += 1
            operation.change_seed(seed)
            next_seed_s += 60.0 * options.every
        if elapsed_s >= next_sample_s:
            operation.sample_memory(list(faults.processes()))
            next_sample_s += SAMPLE_S
        if elapsed_s >= next_fault_s:
            # Each once before any comes again; what finds nothing to hit waits for its turn.
            waiting = waiting or generator.sample(faults.names(), len(faults.names()))
            for name in list(waiting):
                said = faults.inject(name)
                if not said.startswith(("nothing", "missed", "there is no")):
                    say(f"fault: {name}: {said}")
                    done[name] += 1
                    waiting.remove(name)
                    break
            next_fault_s += 60.0 * options.fault_every * generator.uniform(0.5, 1.5)
        time.sleep(1.0)
    return done


def finish(operation: Operation) -> tuple[list[FlowRun], FlowRun | None]:
    """Without faults and schedule, let one more run finish what was interrupted.

    Returns:
        All runs, when none is under way, and that one; None if it could not be started.
    """
    path = operation.clone / "prefect.yaml"
    path.write_text(path.read_text().replace("active: true", "active: false"))
    operation.stop()
    last: FlowRun | None = None
    deadline = time.monotonic() + FINISH_WITHIN_S
    while time.monotonic() < deadline:
        operation.keep_up()
        time.sleep(5.0)
        runs = [run for run in operation.runs() if run.state is not None]
        if runs and last is None:
            last = operation.start_run()
        elif runs and not [run for run in runs if not _is_over(run)]:
            break
    runs = operation.runs()
    return runs, next((run for run in runs if last is not None and run.id == last.id), None)


def _is_over(run: FlowRun) -> bool:
    """Whether a run has ended, or is not due."""
    due = run.expected_start_time
    is_due = due is None or due.timestamp() <= time.time()
    return run.state_type in FINAL or (run.state_type == StateType.SCHEDULED and not is_due)


def check(operation: Operation, runs: list[FlowRun], last: FlowRun | None) -> dict[str, list[str]]:
    """Check what must hold at the end.

    Returns:
        What was checked, and what was found wrong with it.
    """
    clone = operation.clone
    started = [run for run in runs if run.state_type != StateType.SCHEDULED]
    wrong: dict[str, list[str]] = {"Flow runs not in a final state": [
        f"{run.name}: {run.state_name}" for run in started if run.state_type not in FINAL
    ]}  # fmt: skip
    references = run_text(["git", "for-each-ref", "--format=%(refname)", "refs/exps"], operation)
    names = {reference.rpartition("/")[2]: reference for reference in references.split()}
    is_healthy = last is not None and last.state_type == StateType.COMPLETED
    wrong["the run after the last fault"] = [] if is_healthy else [
        "none" if last is None else f"{last.name}: {last.state_name}"
    ]  # fmt: skip
    wrong["Failed or crashed runs without a notice"] = unnoticed(operation, started)
    wrong["Results that completed runs lack"] = []
    for one in started:
        if one.state_type == StateType.COMPLETED:
            name = f"sample-flow-sanguo-{one.name}"
            lost = missing_outputs(clone, names[name]) if name in names else ["no experiment"]
            wrong["Results that completed runs lack"] += [f"{one.name}: {what}" for what in lost]
    history = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "history"], cwd=clone, env=operation.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    wrong["Promotions that the ledger does not explain"] = (
        [] if history.returncode == 0 else [history.stderr]
    )
    return wrong


def unnoticed(operation: Operation, runs: list[FlowRun]) -> list[str]:
    """Return the runs that ended badly without a notice, in the log of `serve` or in their own."""
    served = operation.log.read_text(errors="replace").splitlines()
    found = []
    with operation.client() as client:
        for run in runs:
            if run.state_type not in {StateType.FAILED, StateType.CRASHED}:
                continue
            own = client.read_logs(
                LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])),
                sort=LogSort.TIMESTAMP_DESC,
            )
            lines = [*served, *(entry.message for entry in own)]
            if not any("notification: " in line and f"({run.name}): " in line for line in lines):
                found.append(f"{run.name}: {run.state_name}")
    return found


def missing_outputs(clone: Path, reference: str) -> list[str]:
    """Look for the outputs of an experiment in the cache."""
    lock = subprocess.run(
        ["git", "show", f"{reference}:dvc.lock"], cwd=clone, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    missing = []
    for stage in YAML(typ="safe").load(lock)["stages"].values():
        for out in stage.get("outs", []):
            md5 = out["md5"]
            path = clone / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
            if not path.is_file():
                missing.append(out["path"])
    return missing


def left_processes(faults: Faults) -> list[str]:
    """What still works in the clone after everything was stopped."""
    time.sleep(2.0)
    return [f"{one.pid} {' '.join(one.cmdline())[:120]}" for one in faults.processes()]


def memory_growth(samples: dict[tuple[str, int], list[float]]) -> dict[str, float]:
    """MiB by which each server grew from the second quarter of its longest life to the last."""
    growth: dict[str, float] = {}
    for name in SERVERS:
        lives = [found for (server, _), found in samples.items() if server == name]
        longest = max(lives, key=len, default=[])
        if (quarter := len(longest) // 4) > 0:
            late = statistics.median(longest[-quarter:])
            growth[name] = late - statistics.median(longest[quarter : 2 * quarter])
    return growth


def run(command: list[Any], cwd: Path, environment: dict[str, str]) -> str:
    """Run a short command and return what it prints."""
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, check=True,
        stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip


def run_text(command: list[Any], operation: Operation) -> str:
    """Run a short command in the clone."""
    return run(command, operation.clone, operation.environment)


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    """Operate, check, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=180.0, help="how long faults happen")
    parser.add_argument("--every", type=float, default=20.0, help="minutes between two runs")
    parser.add_argument("--fault-every", type=float, default=5.0, help="minutes, on average")
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, finished reports")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="enigma-soak-"))
    say(f"in {home}")
    operation = Operation(home, options)
    faults = Faults(operation.clone, operation.serve, random.Random(options.seed))
    try:
        done = soak(operation, faults, options)
        runs, last = finish(operation)
        wrong = check(operation, runs, last)
    finally:
        operation.stop()
    wrong["Processes left over"] = left_processes(faults)
    for name, found in wrong.items():
        say(f"{name}: {'; '.join(found) or 'as it must be'}")
    states = Counter(str(one.state_name) for one in runs)
    say(f"faults: {dict(done)}; flow runs: {dict(states)}; starts of serve: {operation.starts}")
    report(operation, states, wrong, sum(done.values()), tiny=options.tiny)
    sys.exit(1 if any(wrong.values()) else 0)


def report(
    operation: Operation,
    states: Counter[str],
    wrong: dict[str, list[str]],
    faults: int,
    *,
    tiny: bool,
) -> None:
    """Write the rows of the results file."""
    completed = states["Completed"]
    rows = [
        row("Faults injected", faults, ""),
        row("Flow runs completed", completed, "", target=">= 1", met=completed > 0),
    ]
    for name, found in wrong.items():
        rows.append(row(name, len(found), "", target="0", met=not found))
    for name, mib in memory_growth(operation.memory_mib).items():
        rows.append(row(f"Memory growth of {name}", mib, "MiB", target="<= 50", met=mib <= 50))
    write("soak_tiny" if tiny else "soak", rows, ("prefect", "dvc", "mlflow"))


if __name__ == "__main__":
    main()
