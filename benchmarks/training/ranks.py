"""Five gloo ranks against one with the same global batch, and three that resume from five.

    OMP_NUM_THREADS=1 python -m benchmarks.training.ranks            # about five minutes

50 steps of 15 sequences under the real torchrun, without dropout (each rank draws its own
masks): on one rank, on 5 ranks x 3 sequences, and on 5 ranks that are killed at step 20 and
resumed as 3 ranks x 5 sequences. No training loss may differ by more than 1e-5.
"""

import os
import tempfile
from pathlib import Path

from benchmarks.record import row, write
from pipelines.base.run_stage import quiet_libraries
from pipelines.runs.directory import RunDirectory
from pipelines.runs.status import newest_run
from tests.support import (
    REPOSITORY,
    TINY_RUN,
    change_params,
    kill_tree,
    make_tiny_shards,
    start_training,
    train_to_the_end,
    wait_for,
)

STEPS, TOLERANCE = 50, 1e-5
SETTINGS = {
    **TINY_RUN,
    "model.attention_dropout": 0.0,
    "train.epochs": 100,
    "train.max_steps": STEPS,
    "train.evaluate_every_steps": 10,
    "train.early_stopping_patience": 100,
}


def main() -> None:
    """Train three times, compare, print and write."""
    quiet_libraries()
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        Path("params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
        change_params(Path("params.yaml"), SETTINGS)
        make_tiny_shards()
        alone = losses("alone", ranks=1, batch_size=15)
        five = losses("five", ranks=5, batch_size=3)
        divide("fewer", ranks=5, batch_size=3)
        process = start_training()
        wait_for(lambda: list(Path("fewer").glob("*/checkpoints/checkpoint-20")), process)
        kill_tree(process)
        fewer = losses("fewer", ranks=3, batch_size=5)
        os.chdir(REPOSITORY)
    for step in (1, 10, 25, 50):
        print(f"step {step:2}: {alone[step - 1]:.7f} {five[step - 1]:.7f} {fewer[step - 1]:.7f}")
    rows = []
    for name, ours in (("5 ranks", five), ("3 ranks after 5", fewer)):
        difference = max(abs(one - two) for one, two in zip(ours, alone, strict=True))
        rows.append(
            row(
                f"{name} against 1, largest loss difference in {STEPS} steps",
                difference,
                "nats",
                target=f"<= {TOLERANCE:g}",
                met=difference <= TOLERANCE,
            )
        )
    write("ranks", rows)


def divide(runs: str, *, ranks: int, batch_size: int) -> None:
    """Set how a step is divided, and use a separate directory of runs."""
    os.environ["ENIGMA_RUNS_DIR"] = runs
    change_params(Path("params.yaml"), {"train.ranks": ranks, "train.batch_size": batch_size})


def losses(runs: str, *, ranks: int, batch_size: int) -> list[float]:
    """Train to the end; return the training loss of every step."""
    divide(runs, ranks=ranks, batch_size=batch_size)
    train_to_the_end()
    records = RunDirectory(newest_run(Path(runs))).metrics.read()
    found = {int(r["step"]): r["train_loss_nats"] for r in records if "train_loss_nats" in r}
    return [found[step] for step in range(1, STEPS + 1)]


if __name__ == "__main__":
    main()
