"""A section of `benchmarks.gpu`: a rank of the stage `train` that is killed and resumes."""

import multiprocessing
import os
import shutil
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from benchmarks.gpu_sections import Machine, Rows
from benchmarks.record import row
from pipelines.base.workspace import Workspace
from pipelines.params import load_params
from pipelines.runs.checkpoints import checkpoint_path
from pipelines.runs.directory import RunConfig, RunDirectory
from pipelines.train import prepare
from pipelines.training.worker import train_rank
from tests.support import REPOSITORY, TINY_RUN, change_params, make_tiny_shards

STEPS, EVERY = 60, 20
SETTINGS = {
    **TINY_RUN,
    "train.ranks": 1,
    "train.epochs": STEPS,
    "train.max_steps": STEPS,
    "train.evaluate_every_steps": EVERY,
    "train.early_stopping_patience": STEPS,
}


def kill_and_resume(machine: Machine) -> Rows:
    """SIGKILL after a checkpoint, then a resume, against training through; with dropout."""
    # cuBLAS reads it when it starts, as in `pipelines.runs.agent`.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    rows = []
    with tempfile.TemporaryDirectory() as directory, chdir(directory):
        shutil.copy(REPOSITORY / "params.yaml", directory)
        change_params(Path("params.yaml"), SETTINGS)
        make_tiny_shards()
        for deterministic in (True,) if machine.tiny else (False, True):
            change_params(Path("params.yaml"), {"train.deterministic": deterministic})
            through, resumed = (
                _trained(Path(f"{deterministic}-{kill}"), kill=kill) for kill in (False, True)
            )
            worst = max(float((through[name] - resumed[name]).abs().max()) for name in through)
            bits = all(torch.equal(through[name], resumed[name]) for name in through)
            rows += [
                row(
                    f"resumed after SIGKILL, deterministic: {str(deterministic).lower()}, weights",
                    worst, "", target="<= 1e-2", met=worst <= 1e-2,
                ),
                row(
                    f"resumed after SIGKILL, deterministic: {str(deterministic).lower()}, bits",
                    bits, "", target="1" if deterministic else None,
                    met=bits if deterministic else None,
                ),
            ]  # fmt: skip
    return rows


def _trained(runs: Path, *, kill: bool) -> dict[str, torch.Tensor]:
    """Return the weights of the last checkpoint of a run in a directory of its own."""
    os.environ["ENIGMA_RUNS_DIR"] = str(runs)
    run, config = prepare(Workspace("sanguo"), load_params().profile)
    last = checkpoint_path(run.checkpoints, STEPS)
    with run.locked():
        if kill:
            process = _start(run, config)
            while not (checkpoint_path(run.checkpoints, EVERY) / "manifest.json").is_file():
                if not process.is_alive():
                    raise RuntimeError(f"the rank ended before its first checkpoint: {process}")
                time.sleep(0.005)
            process.kill()
            process.join()
            if last.exists():
                raise RuntimeError("the rank had finished before it was killed")
        process = _start(run, config)
        process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the rank failed: {process}")
    return load_file(last / "model.safetensors")


def _start(run: RunDirectory, config: RunConfig) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_train, args=(run, config))
    process.start()
    return process


def _train(run: RunDirectory, config: RunConfig) -> None:
    disable_progress_bar()
    train_rank(run, config, rank=0, world_size=1)
