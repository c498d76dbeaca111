"""Find the exact overlap of 1.2 M train and 60 k validation sequences of 256 tokens."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.record import median_times_s, row

TRAIN, VALIDATION, SHARED, LENGTH = 1_200_000, 60_000, 52, 256
ROWS_PER_SHARD = 65_536


def write_sequences(directory: Path) -> None:
    """Write random sequences; 52 of validation, the published number, are in train."""
    generator = np.random.default_rng(0)
    validation = generator.integers(0, 21128, (VALIDATION, LENGTH), dtype=np.uint16)
    validation.tofile(directory / "validation.bin")
    with (directory / "train.bin").open("wb") as stream:
        for start in range(0, TRAIN, ROWS_PER_SHARD):
            count = min(ROWS_PER_SHARD, TRAIN - start)
            block = generator.integers(0, 21128, (count, LENGTH), dtype=np.uint16)
            if start == 0:
                block[1000 : 1000 + SHARED] = validation[:SHARED]
            block.tofile(stream)


def read(path: Path) -> np.ndarray:
    """Map the sequences of a file."""
    return np.memmap(path, dtype="<u2", mode="r").reshape(-1, LENGTH)


def ours(directory: Path) -> int:
    """Count with `pipelines.data.overlap.exact`, shard by shard."""
    from pipelines.data.overlap.exact import HeldSequences
    from pipelines.data.shards import SequenceFiles

    files = SequenceFiles([directory / "validation.bin"], LENGTH)
    held_out = HeldSequences(files, files.gather)
    shared = 0
    # Read into one buffer: mapped pages cost a fault each, and count as memory.
    buffer = np.empty((ROWS_PER_SHARD, LENGTH), "<u2")
    with (directory / "train.bin").open("rb", buffering=0) as stream:
        for start in range(0, TRAIN, ROWS_PER_SHARD):
            block = buffer[: min(ROWS_PER_SHARD, TRAIN - start)]
            stream.readinto(memoryview(block).cast("B"))
            shared += int(np.count_nonzero(held_out.matches(block) >= 0))
    return shared


def sets_of_tuples(directory: Path) -> int:
    """Count with Python sets of tuples, both sides."""
    train = {tuple(sequence) for sequence in read(directory / "train.bin").tolist()}
    validation = {tuple(sequence) for sequence in read(directory / "validation.bin").tolist()}
    return len(train & validation)


def streamed_tuples(directory: Path) -> int:
    """Count with one set of tuples and look train up block by block: the peer at its best."""
    validation = {tuple(sequence) for sequence in read(directory / "validation.bin").tolist()}
    train = read(directory / "train.bin")
    return sum(
        tuple(sequence) in validation
        for start in range(0, TRAIN, ROWS_PER_SHARD)
        for sequence in train[start : start + ROWS_PER_SHARD].tolist()
    )


METHODS = {"ours": ours, "streamed_tuples": streamed_tuples}


def overlap(_corpus: Path) -> list[dict[str, Any]]:
    """Measure time and memory."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        write_sequences(directory)
        if not ours(directory) == streamed_tuples(directory) == SHARED:
            raise ValueError("expected equal counts, got different ones")
        times_s = median_times_s([lambda: ours(directory)], repeats=5)
        times_s += median_times_s([lambda: streamed_tuples(directory)], repeats=3)
        memory_mb = {method: _memory_mb(method, directory) for method in METHODS}
    speed = times_s[1] / times_s[0]
    what = "exact overlap, 1.2 M x 60 k sequences"
    return [
        row(
            what,
            times_s[0],
            "s",
            peer="set of tuples (validation only; train streamed)",
            peer_value=times_s[1],
            target="<= 1/60",
            met=speed >= 60,
        ),
        row(
            f"{what}, memory above the imports",
            memory_mb["ours"],
            "MB",
            peer="set of tuples (validation only; train streamed)",
            peer_value=memory_mb["streamed_tuples"],
            target="<= 200 MB",
            met=memory_mb["ours"] <= 200,
        ),
    ]


def _memory_mb(method: str, directory: Path) -> float:
    """Measure the peak memory of a fresh process minus that of its imports."""
    command = [sys.executable, "-m", "benchmarks.data.overlap", method, str(directory)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(run.stdout))


def main() -> None:
    """Print the memory that one method uses."""
    # Its memory is not the method's.
    import pipelines.data.overlap.exact  # noqa: F401

    before = _peak_mb()
    METHODS[sys.argv[1]](Path(sys.argv[2]))
    print(_peak_mb() - before)


def _peak_mb() -> float:
    """Peak resident memory since the last call, with mapped pages; Linux only."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak_kb = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return int(peak_kb) / 1024


if __name__ == "__main__":
    main()
