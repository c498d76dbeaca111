"""What no CPU can show: every check that a day with one CUDA GPU has to answer.

    python -m benchmarks.gpu                  # all sections, under 25 minutes on one GPU
    python -m benchmarks.gpu speed kernels    # some of them
    python -m benchmarks.gpu --tiny           # on a CPU, to test this file; writes nothing

Each section runs in a process of its own with a limit on its time, so that neither an error, nor a
GPU out of memory or in a bad state, costs the others. The results are written after each section.
"""

import functools
import importlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from benchmarks.record import row, write

if TYPE_CHECKING:
    from benchmarks.gpu_sections import Machine, Rows

# Only the processes of the sections need all that these modules import.
SECTIONS = {
    "gradients": "benchmarks.gpu_sections",
    "kernels": "benchmarks.gpu_sections",
    "synchronisation": "benchmarks.gpu_sections",
    "speed": "benchmarks.gpu_sections",
    "longest": "benchmarks.gpu_sections",
    "optimisers": "benchmarks.gpu_sections",
    "proofs": "benchmarks.gpu_sections",
    "generation": "benchmarks.gpu_sections",
    "flow": "benchmarks.gpu_sections",
    "determinism": "benchmarks.gpu_sections",
    "kill_and_resume": "benchmarks.gpu_kill",
}
"""Functions, by the module that has them."""
LIMIT_S = 240.0
"""Of one section; all of them take less than half of it on a data-centre GPU."""
TOTAL_S = 1500.0


def main() -> None:
    """Run the sections that are named, or all; print and write."""
    names = [word for word in sys.argv[1:] if word != "--tiny"] or list(SECTIONS)
    tiny = "--tiny" in sys.argv
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        sys.exit(f"error: expected sections among {', '.join(SECTIONS)}, got {', '.join(unknown)}")
    if not tiny:
        import torch

        if not torch.cuda.is_available():
            sys.exit("error: expected a CUDA GPU, torch sees none; to test this file: --tiny")
    rows: list[dict[str, Any]] = []
    started_s = time.monotonic()
    for name in names:
        limit_s = min(LIMIT_S, TOTAL_S - (time.monotonic() - started_s))
        rows += run_apart(functools.partial(_section, name), name, limit_s, tiny=tiny)
        if not tiny:
            write("gpu", rows)
    if tiny:
        print(json.dumps(rows))


def _section(name: str, machine: "Machine") -> "Rows":
    section: Callable[[Machine], Rows] = getattr(importlib.import_module(SECTIONS[name]), name)
    return section(machine)


def run_apart(
    section: Callable[["Machine"], "Rows"], name: str, limit_s: float, *, tiny: bool
) -> "Rows":
    """Run a section in a fresh process; one that fails yields a row that says so."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu_kill"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(section, sender, tiny))
    process.start()
    sender.close()
    problem = f"no result in {limit_s:.0f} s"
    if receiver.poll(limit_s):
        try:
            found = receiver.recv()
        except EOFError:
            found = "the process died"
        if isinstance(found, list):
            process.join()
            return found
        problem = found
    process.kill()
    process.join()
    return [row(f"{name}: FAILED: {problem}", 1.0, "", target="no failure", met=False)]


def _send(section: Callable[["Machine"], "Rows"], sender: Connection, tiny: bool) -> None:
    from benchmarks.gpu_sections import Machine

    try:
        sender.send(section(Machine(tiny)))
    except Exception as error:  # noqa: BLE001 - whatever a GPU answers belongs in the table
        sender.send(f"{type(error).__name__}: {str(error)[:300]}")


if __name__ == "__main__":
    main()
