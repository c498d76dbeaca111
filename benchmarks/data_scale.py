"""What 120 million sequences (30 billion tokens, 100 times the published size) would take.

`python -m benchmarks.data_scale` runs every data stage, each in a process of its own, on
0.25 %, 0.5 % and 1 % of that size: the text of `benchmarks.data_memory`, streamed again and
again, with 60,000 sequences held out for validation and for test whatever the size, as many
as were published. From processor times t at n sequences it fits t - t0 = a n^b, t0 being the
time for a corpus of nearly nothing, and from peak memory m = m0 + c n, both by least squares;
the results name b and c beside the projection. No run of the full size is made.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.data_memory import STAGES, Usage, run_stages, write_text
from benchmarks.record import row, write

FULL = 120_000_000
SHARES = (0.0025, 0.005, 0.01)
HELD_OUT = 60_000
# A token stands for one character of three bytes, nearly.
BYTES_A_SEQUENCE = 256 * 3
# Next to nothing, and enough for a certificate.
SMALLEST = 3000
MAX_VALIDATE_S, MAX_VALIDATE_BYTES = 60, 2e9
PUBLISHED = FULL // 100


def measure(sequences: int, held_out: float) -> dict[str, Usage]:
    """Run the stages on so many sequences, a share of which is held out for each later split."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "source").mkdir()
        source = directory / "source" / "text.parquet"
        documents = write_text(source, sequences * BYTES_A_SEQUENCE)
        print(f"{sequences} sequences, {documents} documents", flush=True)
        return run_stages(directory, source, held_out)


def fit_time(sizes: list[int], times_s: list[float], idle_s: float) -> tuple[float, float]:
    """Fit t - idle = a n^b.

    Args:
        sizes: n, at least two.
        times_s: t at each.
        idle_s: Time at n = 0.

    Returns:
        a and b.
    """
    above = np.log(np.maximum(np.array(times_s) - idle_s, 1e-3))
    b, log_a = np.polyfit(np.log(sizes), above, 1)
    return float(np.exp(log_a)), float(b)


def rows_of(measured: dict[int, dict[str, Usage]], idle: dict[str, Usage]) -> list[dict[str, Any]]:
    """What was measured of each stage, the fit, and the projection."""
    sizes = sorted(measured)
    rows = []
    for stage in STAGES:
        used = [measured[size][stage] for size in sizes]
        for size, usage in zip(sizes, used, strict=True):
            what = f"{stage}, {size:,} sequences"
            rows.append(row(f"{what}: processor time", usage.processor_s, "s"))
            rows.append(row(f"{what}: peak memory", usage.peak_bytes / 1e6, "MB"))
        a, b = fit_time(sizes, [usage.processor_s for usage in used], idle[stage].processor_s)
        hours = (idle[stage].processor_s + a * FULL**b) / 3600
        c, m0 = np.polyfit(sizes, [usage.peak_bytes for usage in used], 1)
        rows.append(row(f"{stage}, {FULL:,} sequences, projected with n^{b:.2f}", hours, "h"))
        memory = f"{stage}, {FULL:,} sequences, projected with {max(c, 0):.0f} bytes a sequence"
        rows.append(row(memory, (m0 + max(c, 0) * FULL) / 1e9, "GB"))
    return [*rows, *_published(measured)]


def _published(measured: dict[int, dict[str, Usage]]) -> list[dict[str, Any]]:
    """`validate` beside its targets, where the published size was measured."""
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
    idle = measure(SMALLEST, 0.05)
    sizes = [round(share * FULL) for share in shares]
    measured = {size: measure(size, HELD_OUT / size) for size in sizes}
    write("data_scale", rows_of(measured, idle), ("pyarrow", "numpy"))


if __name__ == "__main__":
    main()
