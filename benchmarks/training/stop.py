"""Measure how long a training run takes to save and end after SIGTERM.

    OMP_NUM_THREADS=1 python -m benchmarks.training.stop       # about three minutes

A clone of the repository trains a tiny model on 2 gloo ranks and is sent SIGTERM at a random
moment after its first step, as a scheduler would do; the next run resumes from the checkpoint
that this one saved, and is stopped in turn.
"""

import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.record import row, write
from benchmarks.training.kills import prepare, records
from pipelines.base.run_stage import QUIET_ENVIRONMENT
from pipelines.runs.checkpoints import newest_complete
from pipelines.runs.directory import RunDirectory
from pipelines.runs.status import newest_run
from tests.support import REPOSITORY, start_training, wait_for

STOPS, SEED, DEADLINE_S = 7, 0, 10.0


def stop_once(runs: Path, generator: random.Random) -> float:
    """Resume, stop, check that nothing was lost, and return the seconds from TERM to the end."""
    process, before = start_training(), records(runs)
    wait_for(lambda: records(runs) > before, process)
    time.sleep(generator.uniform(0.0, 3.0))
    process.send_signal(signal.SIGTERM)
    asked_s = time.monotonic()
    output, _ = process.communicate()
    took_s = time.monotonic() - asked_s
    if "asked to stop" not in output:
        raise ValueError(f"the run did not end as asked:\n{output[-3000:]}")
    saved, recorded = newest_complete(RunDirectory(newest_run(runs)).checkpoints), records(runs)
    print(f"{took_s:.1f} s; last recorded step {recorded}, saved step {saved}", flush=True)
    if saved is None or saved < recorded:
        raise ValueError(f"expected a checkpoint of step {recorded} or later, got step {saved}")
    return took_s


def main() -> None:
    """Stop several times, print and write."""
    generator = random.Random(SEED)
    os.environ.update(QUIET_ENVIRONMENT)
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(prepare(Path(directory)))
        runs = Path(directory, "runs")
        os.environ["ENIGMA_RUNS_DIR"] = str(runs)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{directory}/mlflow.db"
        times_s = [stop_once(runs, generator) for _ in range(STOPS)]
        os.chdir(REPOSITORY)
    worst_s = max(times_s)
    write(
        "stop",
        [
            row(
                f"SIGTERM to saved and ended, worst of {STOPS}",
                worst_s,
                "s",
                target=f"<= {DEADLINE_S:g} s",
                met=worst_s <= DEADLINE_S,
            ),
            row("SIGTERM to saved and ended, median", statistics.median(times_s), "s"),
        ],
    )


if __name__ == "__main__":
    main()
