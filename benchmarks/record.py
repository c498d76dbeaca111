"""Time functions in turn, and write `benchmarks/results/<name>.json`.

A row holds a measurement of Enigma and of a peer in the same process; `ratio` is value over
peer value. `met` is None for a row without a target.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("torch", "transformers")


def row(
    name: str,
    value: float,
    unit: str,
    *,
    peer: str | None = None,
    peer_value: float | None = None,
    target: str | None = None,
    met: bool | None = None,
) -> dict[str, Any]:
    """Return one row of a results file."""
    ratio = value / peer_value if peer_value else None
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": ratio,
        "target": target,
        "met": met,
    }


def write(name: str, rows: list[dict[str, Any]], packages: tuple[str, ...] = ()) -> Path:
    """Print the rows and write them, with the machine and the versions."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").is_file()
        else iter(()),
        platform.machine(),
    )
    record = {
        "machine": f"{cpu}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads",
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in (*_PACKAGES, *packages)},
        },
        "rows": rows,
    }
    for entry in rows:
        verdict = {True: "met", False: "missed", None: ""}[entry["met"]]
        ratio = "" if entry["ratio"] is None else f"{entry['ratio']:.3g}x of {entry['peer']}"
        print(f"{entry['name']:<64} {entry['value']:>10.4g} {entry['unit']:<8} {ratio} {verdict}")
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def best_times_s(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """Return each function's shortest time in seconds, after one turn that does not count."""
    return [min(times_s) for times_s in _take_turns(functions, repeats)]


def median_times_s(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """Return each function's median time in seconds, after one turn that does not count."""
    return [statistics.median(times_s) for times_s in _take_turns(functions, repeats)]


def _take_turns(functions: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Return each function's times in seconds; they take turns, so all share the noise.

    With one thread, processor time is measured: other programs disturb it less.
    """
    clock = time.process_time if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter
    for function in functions:
        function()
    times_s: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, mine in zip(functions, times_s, strict=True):
            start = clock()
            function()
            mine.append(clock() - start)
    return times_s
