"""Kill the process tree of `dvc repro` at random moments: the weights must be unaffected.

    OMP_NUM_THREADS=1 python -m benchmarks.training.kills   # 20 kills, about fifteen minutes

A clone of the repository trains a tiny model on 2 gloo ranks twice: once undisturbed, once
with SIGKILL for every process of the tree (dvc, launcher, torchrun, ranks) at random moments,
alternately at any time after the start, and at any time after the first new record of the
ranks, while they train, evaluate or save. After each kill `dvc repro` is simply run again. The
published weights must be equal bit for bit.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import row, write
from pipelines.base.artifacts import sha256_file
from pipelines.base.run_stage import QUIET_ENVIRONMENT
from pipelines.base.workspace import Workspace
from pipelines.runs.checkpoints import steps_on_disk
from pipelines.runs.directory import RunDirectory
from pipelines.runs.status import newest_run
from tests.support import (
    REPOSITORY,
    TINY_RUN,
    change_params,
    kill_tree,
    make_tiny_shards,
    wait_for,
)

KILLS, SEED = 20, 0
LONGEST_LIFE_S, LONGEST_TRAINING_S = 40.0, 8.0
SETTINGS = {
    **TINY_RUN,
    "train.ranks": 2,
    "train.epochs": 100_000,
    "train.max_steps": 3000,
    "train.evaluate_every_steps": 50,
    "train.log_every_steps": 25,
    "train.early_stopping_patience": 1000,
    "train.learning_rate": 1.0e-4,
}


def main() -> None:
    """Train twice, compare, print and write."""
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(prepare(Path(directory)))
        expected = train(Path(directory, "undisturbed"), kills=0)
        actual = train(Path(directory, "killed"), kills=KILLS)
    print(f"undisturbed         {expected}\nafter {KILLS} kills      {actual}")
    os.chdir(REPOSITORY)
    if actual != expected:
        raise ValueError(f"expected equal weights, got {actual} instead of {expected}")
    write(
        "kills",
        [
            row(
                "SIGKILL of the whole tree of dvc repro, weights equal bit for bit",
                KILLS,
                "kills",
                target=f"{KILLS}",
                met=True,
            )
        ],
    )


def prepare(directory: Path) -> Path:
    """Clone the repository and give it tiny shards; returns the clone."""
    clone = directory / "enigma"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
    os.chdir(clone)
    change_params(Path("params.yaml"), SETTINGS)
    make_tiny_shards()
    return clone


def train(runs: Path, kills: int) -> str:
    """Run `dvc repro` for the stage train until it succeeds.

    Args:
        runs: The directory of the run in progress.
        kills: How often the tree is killed before it may finish.

    Returns:
        The SHA-256 of the published weights.
    """
    generator = random.Random(SEED)
    environment = {
        **os.environ,
        **QUIET_ENVIRONMENT,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path.cwd()),
        "ENIGMA_RUNS_DIR": str(runs),
        "MLFLOW_TRACKING_URI": f"sqlite:///{runs}.db",
    }
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "--force", "train"]
    for number in range(kills + 1):
        with Path(f"{runs}.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
            )
        if number == kills:
            break
        began_s, before = time.monotonic(), records(runs)
        if number % 2:
            wait_for(lambda before=before: records(runs) > before, process)
            deadline = time.monotonic() + generator.uniform(0.0, LONGEST_TRAINING_S)
        else:
            deadline = began_s + generator.uniform(0.0, LONGEST_LIFE_S)
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ValueError(
                    f"the run ended before kill {number + 1}; to fix this: raise train.max_steps"
                )
            time.sleep(0.01)
        kill_tree(process)
        life_s = time.monotonic() - began_s
        print(f"kill {number + 1:2} after {life_s:5.1f} s: {describe(runs)}", flush=True)
    if process.wait() != 0:
        raise ValueError(Path(f"{runs}.log").read_text(encoding="utf-8")[-3000:])
    return sha256_file(Workspace("sanguo").language_model / "model.safetensors")


def records(runs: Path) -> int:
    """The last recorded step; 0 before the first."""
    found = list(runs.glob("*/run.json"))
    recorded = RunDirectory(newest_run(runs)).metrics.read() if found else []
    return int(recorded[-1]["step"]) if recorded else 0


def describe(runs: Path) -> str:
    """Describe how far a killed run had come."""
    if not list(runs.glob("*/run.json")):
        return "nothing had begun"
    run = RunDirectory(newest_run(runs))
    newest = max(steps_on_disk(run.checkpoints), default=0)
    building = ", while saving" if list(run.checkpoints.glob(".building/*")) else ""
    return f"last record of step {records(runs)}, newest checkpoint {newest}{building}"


if __name__ == "__main__":
    main()
