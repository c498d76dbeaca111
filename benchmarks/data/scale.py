"""Project the cost of 120 million sequences (30 billion tokens, 100 times the published size).

`python -m benchmarks.data.scale` runs every data stage, each in a process of its own, on
0.25 %, 0.5 % and 1 % of that size: the text of `benchmarks.data.memory`, streamed repeatedly,
with 60,000 sequences held out for validation and for test at every size, the published
number. It fits a line by least squares to processor time and peak memory at n sequences, as
start-up and the held-out sequences cost the same at every size. The results hold the
projection, the slope, and the exponent between the smallest and the largest size, which is at
most 1 if the cost is at most linear. Memory that does not grow is not projected: the largest
measured peak stands in its place. Nothing is run at the full size.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.data.memory import STAGES, Usage, run_stages, write_text
from benchmarks.record import row, write

FULL = 120_000_000
SHARES = (0.0025, 0.005, 0.01)
HELD_OUT = 60_000
# A token is nearly always one character of three bytes.
BYTES_PER_SEQUENCE = 256 * 3
MAX_VALIDATE_S, MAX_VALIDATE_BYTES = 60, 2e9
PUBLISHED = FULL // 100


def measure(sequences: int, held_out: float) -> dict[str, Usage]:
    """Run the stages on `sequences` sequences, with a share held out for each later split."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "source").mkdir()
        source = directory / "source" / "text.parquet"
        documents = write_text(source, sequences * BYTES_PER_SEQUENCE)
        print(f"{sequences} sequences, {documents} documents", flush=True)
        return run_stages(directory, source, held_out)


def rows_of(measured: dict[int, dict[str, Usage]]) -> list[dict[str, Any]]:
    """The measurements of each stage, the fits, and the projection."""
    sizes = sorted(measured)
    rows = []
    for stage in STAGES:
        used = [measured[size][stage] for size in sizes]
        for size, usage in zip(sizes, used, strict=True):
            what = f"{stage}, {size:,} sequences"
            rows.append(row(f"{what}: processor time", usage.processor_s, "s"))
            rows.append(row(f"{what}: peak memory", usage.peak_bytes / 1e6, "MB"))
        rise = np.log(used[-1].processor_s / used[0].processor_s)
        exponent = rise / np.log(sizes[-1] / sizes[0])
        slope_s, start_s = np.polyfit(sizes, [usage.processor_s for usage in used], 1)
        what = f"{stage}, {FULL:,} sequences, projected with"
        how = f"{1e6 * slope_s:.1f} us per sequence (between the sizes n^{exponent:.2f})"
        rows.append(row(f"{what} {how}", (start_s + slope_s * FULL) / 3600, "h"))
        rows.append(memory_row(stage, sizes, [usage.peak_bytes for usage in used]))
    return [*rows, *_published(measured)]


def memory_row(stage: str, sizes: list[int], peaks_bytes: list[float]) -> dict[str, Any]:
    """Project the memory of a stage, or give the largest peak if no growth was measured."""
    slope_bytes, start_bytes = np.polyfit(sizes, peaks_bytes, 1)
    if slope_bytes <= 0:
        return row(f"{stage}, no growth measured: largest peak", max(peaks_bytes) / 1e9, "GB")
    what = f"{stage}, {FULL:,} sequences, projected with {slope_bytes:.0f} bytes per sequence"
    return row(what, (start_bytes + slope_bytes * FULL) / 1e9, "GB")


def _published(measured: dict[int, dict[str, Usage]]) -> list[dict[str, Any]]:
    """Compare `validate` with its targets, if the published size was measured."""
    if PUBLISHED not in measured:
        return []
    usage = measured[PUBLISHED]["validate"]
    what = f"validate of {PUBLISHED:,} sequences"
    return [
        row(
            f"{what}: processor time",
            usage.processor_s,
            "s",
            target=f"<= {MAX_VALIDATE_S} s",
            met=usage.processor_s <= MAX_VALIDATE_S,
        ),
        row(
            f"{what}: peak memory",
            usage.peak_bytes / 1e6,
            "MB",
            target=f"<= {MAX_VALIDATE_BYTES / 1e6:,.0f} MB",
            met=usage.peak_bytes <= MAX_VALIDATE_BYTES,
        ),
    ]


def main() -> None:
    """Measure every size, fit, and write results/data_scale.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    shares = parser.parse_args().shares
    sizes = [round(share * FULL) for share in shares]
    measured = {size: measure(size, HELD_OUT / size) for size in sizes}
    write("data_scale", rows_of(measured), ("pyarrow", "numpy"))


if __name__ == "__main__":
    main()
