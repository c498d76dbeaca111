"""Find exact overlap and repeats in 120 million streamed sequences, with only keys on disk.

    OMP_NUM_THREADS=1 python -m benchmarks.data.restream      # takes minutes and 1 GB of disk

100 times the published size (30 billion tokens, 61 GB) is not written: one block of sequences is
streamed repeatedly, with its tokens changed every time. A key of 8 bytes per sequence goes into one
of 256 files, in which repeats are then found file by file. The functions are those of the pipeline.
Sequences that are also held out, and sequences that occur twice, are planted; exactly these must be
found. `benchmarks.data.scale` measures whole stages.
"""

import argparse
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.record import row, write
from pipelines.base.run_stage import progress
from pipelines.data.overlap.exact import HeldSequences
from pipelines.data.overlap.windows import window_hashes
from pipelines.data.shards import Tokens

SEQUENCES, HELD_OUT, LENGTH, BLOCK = 120_000_000, 60_000, 256, 1 << 16
FILES = 256
SHARED, REPEATED = 52, 1000
MAX_BYTES = 1e9

Spent = Counter[str]
"""Processor seconds by step."""


@contextmanager
def spending(spent_s: Spent, step: str) -> Iterator[None]:
    """Add the processor time of the block to a step."""
    start_s = time.process_time()
    yield
    spent_s[step] += time.process_time() - start_s


def num_blocks(sequences: int) -> int:
    """The number of blocks for that many sequences."""
    return -(-sequences // BLOCK)


def blocks(held_out_ML: Tokens, sequences: int) -> Iterator[Tokens]:
    """Yield blocks of sequences, all different except for planted ones, in one reused buffer."""
    generator = np.random.default_rng(1)
    block_NL = generator.integers(0, 21128, (BLOCK, LENGTH), dtype=np.uint16)
    first_NL = block_NL[:REPEATED].copy()
    for number in range(num_blocks(sequences)):
        given_NL = block_NL[: sequences - number * BLOCK]
        if number == 1:
            given_NL = given_NL.copy()
            given_NL[:SHARED] = held_out_ML[:SHARED]
            given_NL[-REPEATED:] = first_NL
        yield given_NL
        # Numbers that no other block has, so that no sequence repeats.
        block_NL ^= np.uint16(number ^ (number + 1))


def stream(held_out_ML: Tokens, directory: Path, sequences: int, spent_s: Spent) -> int:
    """Look every sequence up among the held-out ones, and write its key to disk.

    Returns:
        How many are held out.
    """
    held_out, shared = HeldSequences([held_out_ML], held_out_ML.__getitem__), 0
    with ExitStack() as stack:
        files = [stack.enter_context((directory / f"{i}").open("wb")) for i in range(FILES)]
        given = blocks(held_out_ML, sequences)
        for block_NL in progress(given, total=num_blocks(sequences), unit="block", label="blocks"):
            with spending(spent_s, "exact overlap"):
                found_N = held_out.matches(block_NL)
                shared += int(np.count_nonzero(found_N >= 0))
            with spending(spent_s, "keys"):
                keys_N = window_hashes(block_NL, LENGTH)[:, 0]
            with spending(spent_s, "keys to disk"):
                keys_N.sort()
                bounds = np.searchsorted(keys_N >> np.uint64(56), np.arange(FILES + 1))
                for file, first, last in zip(files, bounds[:-1], bounds[1:], strict=True):
                    keys_N[first:last].tofile(file)
    return shared


def repeats(directory: Path, spent_s: Spent) -> int:
    """Count repeated keys, file by file."""
    found = 0
    for path in directory.iterdir():
        with spending(spent_s, "repeats"):
            keys = np.fromfile(path, np.uint64)
            keys.sort()
            found += int(np.count_nonzero(keys[1:] == keys[:-1]))
    return found


def measure(sequences: int) -> list[dict[str, Any]]:
    """Run all steps over `sequences` sequences.

    Raises:
        ValueError: If what was planted is not what was found.
    """
    held_out_ML = np.random.default_rng(0).integers(0, 21128, (HELD_OUT, LENGTH), dtype=np.uint16)
    # Compile before the clock starts.
    window_hashes(held_out_ML[:1], LENGTH)
    spent_s: Spent = Counter()
    with TemporaryDirectory() as name:
        directory = Path(name)
        shared = stream(held_out_ML, directory, sequences, spent_s)
        on_disk = sum(path.stat().st_size for path in directory.iterdir())
        found = (shared, repeats(directory, spent_s))
    if found != (SHARED, REPEATED):
        raise ValueError(f"expected the planted {(SHARED, REPEATED)}, got {found}")
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    what = f"{sequences:,} sequences"
    return [
        *(row(f"{what}: {step}", seconds, "s") for step, seconds in spent_s.items()),
        row(f"{what}: keys on disk", on_disk / 1e6, "MB"),
        row(
            f"{what}: peak memory",
            peak_bytes / 1e6,
            "MB",
            target=f"<= {MAX_BYTES / 1e6:,.0f} MB",
            met=peak_bytes <= MAX_BYTES,
        ),
    ]


def main() -> None:
    """Measure and write results/data_restream.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="at least two blocks")
    write("data_restream", measure(parser.parse_args().sequences), ("numpy", "pyarrow"))


if __name__ == "__main__":
    main()
