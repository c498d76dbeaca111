"""A training run in progress: `runs/<fingerprint>/`, which survives every kill.

DVC deletes a stage's outputs before it runs the stage, so a run lives elsewhere,
under a name made from everything that decides its result. The same inputs find
the same directory and resume; other inputs start a new run.

    run.json        the configuration for the ranks (written by the launcher)
    checkpoints/    see pipelines/runs/checkpoints.py
    metrics.jsonl   see pipelines/tracking/metrics_file.py
    mlflow.json     see pipelines/tracking/metrics_file.py
    device.json     what rank 0 trains on: device, versions of torch and CUDA
    outcome.json    how the ranks ended, written by rank 0
    stop            its presence asks the ranks to save and end
    lock            held by the launcher; its text names the launcher's process
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipelines.base.artifacts import read_json, write_json
from pipelines.base.errors import UserError
from pipelines.base.locks import Holder, held_lock, read_holder
from pipelines.params import ModelParams, TrainParams
from pipelines.tracking.metrics_file import MetricsFile

FINGERPRINT_DIGITS = 16


@dataclass(frozen=True)
class RunConfig:
    """The configuration for the ranks, stored as `run.json`.

    Args:
        profile: Name of the profile.
        fingerprint: See `fingerprint`.
        steps: Optimiser steps, if nothing ends the run early.
        tokens_per_step: Tokens that all ranks together process in one optimiser step.
        nodes: Machines that the ranks are spread over, the same number on each.
        rendezvous: Where the agents of several nodes meet, HOST:PORT; empty for one node.
        shards: The directory of the final shards.
        shards_root: The root of their manifest.
        certificate_sha256: SHA-256 of the certificate that allowed the run.
        ngrams: The directory of the n-grams of train.
        ngrams_root: The root of their manifest.
        model: The architecture.
        train: The recipe.
    """

    profile: str
    fingerprint: str
    steps: int
    tokens_per_step: int
    nodes: int
    rendezvous: str
    shards: Path
    shards_root: str
    certificate_sha256: str
    ngrams: Path
    ngrams_root: str
    model: ModelParams
    train: TrainParams


@dataclass(frozen=True)
class Outcome:
    """How the ranks ended.

    Args:
        status: "finished"; "stopped" on request, resumable; "failed" for a reason
            that another attempt would meet again.
        step: The last optimiser step.
        problem: For "failed": what was expected, and what was found.
        fix: For "failed": what the user can do.
    """

    status: Literal["finished", "stopped", "failed"]
    step: int
    problem: str = ""
    fix: str = ""


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    Args:
        path: The directory.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> MetricsFile:
        """The records of the run."""
        return MetricsFile(self.path / "metrics.jsonl")

    def write_config(self, config: RunConfig) -> None:
        """Write `run.json`."""
        values = asdict(config)
        values["shards"] = str(config.shards.resolve())
        values["ngrams"] = str(config.ngrams.resolve())
        values["model"] = config.model.model_dump(mode="json")
        values["train"] = config.train.model_dump(mode="json")
        write_json(self.path / "run.json", values)

    def read_config(self) -> RunConfig:
        """Read `run.json`.

        Raises:
            UserError: If this is not the directory of a run, or the file is damaged.
        """
        if not (self.path / "run.json").is_file():
            raise UserError(
                f"expected the directory of a training run, got {self.path} (no run.json)",
                "name one of the directories in runs/",
            )
        values = read_json(self.path / "run.json")
        try:
            values["shards"] = Path(values["shards"])
            values["ngrams"] = Path(values["ngrams"])
            values["model"] = ModelParams.model_validate(values["model"])
            values["train"] = TrainParams.model_validate(values["train"])
            return RunConfig(**values)
        except (KeyError, TypeError, ValidationError) as error:
            raise UserError(
                f"{self.path}: expected a run of this version of the code, got: {error}",
                "use the commit that started the run, or start another: dvc repro train",
            ) from None

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the run for one launcher.

        Yields:
            The file descriptor that holds the lock; a child that inherits it
            keeps holding it if this process is killed.

        Raises:
            UserError: If another process holds it.
        """

        def refuse(holder: str) -> None:
            raise UserError(
                f"{self.path}: expected no other training of this run, "
                f"but process {holder} is already running it",
                "wait until it has ended, or stop it: it saves a checkpoint first",
            )

        with held_lock(self.path / "lock", refuse) as descriptor:
            yield descriptor

    def launcher(self) -> Holder | None:
        """The process that holds the lock, or held it last; None if it cannot be read."""
        return read_holder(self.path / "lock")

    def launcher_is_gone(self) -> bool:
        """Whether the process that took the lock has ended.

        Returns:
            False also for a launcher on another node: that node's ranks watch it.
        """
        launcher = self.launcher()
        return launcher is not None and launcher.state() == "dead"

    def ask_to_stop(self) -> None:
        """Ask the ranks to save a checkpoint and end."""
        (self.path / "stop").touch()

    def begin(self) -> None:
        """Delete the stop request and the outcome of an earlier attempt."""
        (self.path / "stop").unlink(missing_ok=True)
        (self.path / "outcome.json").unlink(missing_ok=True)

    def stop_is_asked(self) -> bool:
        """Whether the ranks are asked to save and end."""
        return (self.path / "stop").exists() or self.launcher_is_gone()

    def write_outcome(self, outcome: Outcome) -> None:
        """Write `outcome.json`."""
        write_json(self.path / "outcome.json", asdict(outcome))

    def read_outcome(self) -> Outcome | None:
        """Read `outcome.json`; None if the ranks did not end by themselves."""
        path = self.path / "outcome.json"
        return Outcome(**read_json(path)) if path.is_file() else None

    def write_device(self, device: Mapping[str, str]) -> None:
        """Write `device.json`."""
        write_json(self.path / "device.json", dict(device))

    def read_device(self) -> dict[str, str]:
        """Read `device.json`; empty before the ranks have started."""
        path = self.path / "device.json"
        return read_json(path) if path.is_file() else {}

    @property
    def mlflow_run_id(self) -> str | None:
        """The MLflow run that belongs to this one, if it has been created."""
        return self.metrics.run_id


def fingerprint(
    *, shards_root: str, ngrams_root: str, model: ModelParams, train: TrainParams, code: str
) -> str:
    """Name a run by everything that decides its result: data, parameters, code.

    The name leaves out how the sequences of a step are divided among ranks and micro-batches:
    a run that began on 5 ranks may resume on 3 of them, with the same sequences.

    Args:
        shards_root: The root of the shards' manifest.
        ngrams_root: The root of the manifest of the n-grams.
        model: The architecture.
        train: The recipe.
        code: Hash of the code that decides the weights.

    Returns:
        64 hexadecimal digits.
    """
    # The time-out decides no weight.
    without = {"ranks", "batch_size", "gradient_accumulation_steps", "rank_timeout_s"}
    facts = {
        "shards_root": shards_root,
        "ngrams_root": ngrams_root,
        "model": model.model_dump(mode="json"),
        "train": train.model_dump(mode="json", exclude=without),
        "sequences_per_step": train.sequences_per_step,
        "code": code,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
