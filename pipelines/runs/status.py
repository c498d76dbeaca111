"""The status of a training run, from its files and the machine, for monitoring.

Nothing here talks to the ranks: a run can be read on a machine without MLflow, by
any user, and long after it ended.
"""

import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipelines.base.artifacts import MANIFEST_NAME
from pipelines.base.errors import UserError
from pipelines.runs.checkpoints import checkpoint_path, steps_on_disk
from pipelines.runs.directory import RunConfig, RunDirectory

MIB = 2**20
# CPU use is measured over this interval.
CPU_INTERVAL_S = 0.2


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU at one moment."""

    name: str
    use_percent: int
    memory_mib: float
    total_memory_mib: float
    temperature_c: int


@dataclass(frozen=True)
class RunStatus:
    """A training run at one moment.

    Args:
        path: Its directory.
        config: Its configuration.
        state: "running", or a sentence on how it ended.
        records: All records of `metrics.jsonl`.
        checkpoint_step: The newest sealed checkpoint; None if there is none.
        checkpoint_age_s: Its age.
        device: What rank 0 trains on; empty before it has started.
    """

    path: Path
    config: RunConfig
    state: str
    records: list[dict[str, float]]
    checkpoint_step: int | None
    checkpoint_age_s: float
    device: dict[str, str]

    def newest(self, name: str) -> float | None:
        """The newest value of a metric; None if it was never recorded."""
        return next((r[name] for r in reversed(self.records) if name in r), None)

    def curve(self, name: str) -> list[float]:
        """All values of a metric, in step order."""
        return [record[name] for record in self.records if name in record]

    @property
    def step(self) -> int:
        """The last recorded optimiser step; 0 before the first."""
        return int(self.records[-1]["step"]) if self.records else 0

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the last step at the current speed, without evaluations."""
        tokens_per_s = self.newest("tokens_per_s")
        if self.state != "running" or not tokens_per_s:
            return None
        return (self.config.steps - self.step) * self.config.tokens_per_step / tokens_per_s


def newest_run(runs: Path) -> Path:
    """Find the run that was written to last.

    Args:
        runs: The directory of all runs.

    Raises:
        UserError: If there is none.
    """
    found = list(runs.glob("*/run.json"))
    if not found:
        raise UserError(
            f"expected a training run in {runs}, found none", "start one: dvc repro train"
        )
    return max((path.parent for path in found), key=_last_written)


def read_status(path: Path) -> RunStatus:
    """Read a run's files.

    Args:
        path: The directory of the run.

    Raises:
        UserError: If it is not the directory of a run.
    """
    run = RunDirectory(path)
    config = run.read_config()
    sealed = [
        step
        for step in steps_on_disk(run.checkpoints)
        if (checkpoint_path(run.checkpoints, step) / MANIFEST_NAME).is_file()
    ]
    newest = sealed[-1] if sealed else None
    age_s = 0.0
    if newest is not None:
        manifest = checkpoint_path(run.checkpoints, newest) / MANIFEST_NAME
        age_s = max(0.0, time.time() - manifest.stat().st_mtime)
    records, device = run.metrics.read(), run.read_device()
    return RunStatus(path, config, _state(run), records, newest, age_s, device)


def _state(run: RunDirectory) -> str:
    outcome = run.read_outcome()
    if outcome is not None:
        why = f": {outcome.problem}" if outcome.problem else ""
        return f"{outcome.status} at step {outcome.step}{why}"
    launcher = run.launcher()
    if launcher is None:
        return "unknown: its lock cannot be read by this user"
    state = launcher.state()
    if state == "elsewhere" and launcher.host == socket.gethostname():
        return "stopped: the machine was restarted"
    return "stopped: its launcher was killed" if state == "dead" else "running"


def _last_written(path: Path) -> float:
    return max(file.stat().st_mtime for file in path.iterdir())


def read_gpus() -> list[Gpu] | str:
    """All NVIDIA GPUs of this machine, or why there are none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"no NVIDIA GPU ({error})"
    try:
        return [_read_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _read_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        name=str(nvml.nvmlDeviceGetName(handle)),
        use_percent=int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        memory_mib=memory.used / MIB,
        total_memory_mib=memory.total / MIB,
        temperature_c=int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
    )


def read_machine() -> str:
    """CPU and memory use of this machine, in one line."""
    memory = psutil.virtual_memory()
    percent = psutil.cpu_percent(CPU_INTERVAL_S)
    return (
        f"{percent:.0f} % of {psutil.cpu_count()} cores, "
        f"{memory.used / MIB:,.0f} of {memory.total / MIB:,.0f} MiB"
    )
