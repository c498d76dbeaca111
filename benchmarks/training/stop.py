"""Measure how long a training run takes to save and end after SIGTERM.

    OMP_NUM_THREADS=1 python -m benchmarks.training.stop            # about three minutes
    bindfs --write-rate=200k /tmp/disk /tmp/slow                    # two empty directories
    OMP_NUM_THREADS=1 python -m benchmarks.training.stop /tmp/slow  # about five minutes

A clone of the repository trains a tiny model on 2 gloo ranks below the supervisor of the flows, and
is cancelled at a random moment after its first step; the next run resumes from the checkpoint that
this one saved, and is cancelled in turn. With a directory the run lives there: on a slow disk, a
checkpoint takes longer than the grace of the supervisor, which must wait for it.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import row, write
from benchmarks.training.kills import prepare, records
from flows.running.supervisor import GRACE_S, start_supervised
from pipelines.base.run_stage import QUIET_ENVIRONMENT
from pipelines.runs.checkpoints import newest_complete
from pipelines.runs.directory import RunDirectory
from pipelines.runs.status import newest_run
from tests.support import REPOSITORY, wait_for

STOPS, SLOW_STOPS, SEED, DEADLINE_S = 7, 3, 0, 10.0


def stop_once(runs: Path, generator: random.Random) -> float:
    """Resume, cancel, check that nothing was lost, and return the seconds from TERM to the end."""
    command = [sys.executable, "-m", "pipelines.train"]
    process, before = start_supervised(command, cwd=Path(), env=os.environ), records(runs)
    wait_for(lambda: records(runs) > before, process)
    time.sleep(generator.uniform(0.0, 3.0))
    process.terminate()
    asked_s = time.monotonic()
    output = process.communicate()[0].decode()
    took_s = time.monotonic() - asked_s
    saved, recorded = newest_complete(RunDirectory(newest_run(runs)).checkpoints), records(runs)
    print(f"{took_s:.1f} s; last recorded step {recorded}, saved step {saved}", flush=True)
    if "asked to stop" not in output or saved is None or saved < recorded:
        raise ValueError(
            f"expected to be asked to stop, and a checkpoint of step {recorded} or later, got step "
            f"{saved}:\n{output[-3000:]}"
        )
    return took_s


def disk_mb_per_s(directory: Path) -> float:
    """Measure how fast a megabyte is written to a disk."""
    path, started_s = directory / "megabyte", time.monotonic()
    with path.open("wb") as file:
        file.write(os.urandom(10**6))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    return 1 / (time.monotonic() - started_s)


def checkpoint_mb(runs: Path) -> float:
    """Return the size of the newest checkpoint."""
    newest = max(newest_run(runs).glob("checkpoints/checkpoint-*"), key=os.path.getmtime)
    return sum(path.stat().st_size for path in newest.iterdir()) / 1e6


def main() -> None:
    """Stop several times, print and write."""
    generator, disk = random.Random(SEED), Path(sys.argv[1]).resolve() if sys.argv[1:] else None
    os.environ.update(QUIET_ENVIRONMENT)
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(prepare(Path(directory)))
        runs = Path(directory if disk is None else disk, "runs")
        os.environ["ENIGMA_RUNS_DIR"] = str(runs)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{directory}/mlflow.db"
        stops = STOPS if disk is None else SLOW_STOPS
        times_s = [stop_once(runs, generator) for _ in range(stops)]
        size_mb = checkpoint_mb(runs)
        os.chdir(REPOSITORY)
    worst_s = max(times_s)
    if disk is not None:
        speed = disk_mb_per_s(disk)
        name = f"cancel to saved and ended, worst of {stops}, slow disk"
        rows = [
            row("slow disk", speed, "MB/s"),
            row("checkpoint", size_mb, "MB"),
            row(name, worst_s, "s", target=f"> {GRACE_S:g} s, saved", met=worst_s > GRACE_S),
        ]
        write("stop_slow_disk", rows)
        return
    write(
        "stop",
        [
            row(
                f"SIGTERM to saved and ended, worst of {stops}",
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
