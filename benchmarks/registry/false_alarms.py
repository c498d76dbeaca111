"""How often a whole version is refused, and how long a verification takes.

    python -m benchmarks.registry.false_alarms enigma-lm@champion --repeats 1000

Run it where the store is, after `make demo`. Every repetition checks the signatures, the hash of
every file, OpenSSF's signature, the chain of stages and the gates of the reports again. The command
as a user runs it, which also proves causality on the weights, is timed on its own.
"""

import argparse
import statistics
import subprocess
import sys
import time

from benchmarks.record import row, write
from pipelines.registry.evidence.keys import trust
from pipelines.registry.evidence.stored import opened
from pipelines.registry.evidence.verify import verify
from pipelines.registry.evidence.version import evidence_gates, full_evidence_gates
from pipelines.registry.gates import Proof, flow_gates, lm_gates
from pipelines.registry.names import FLOW

COMMAND_REPEATS = 3


def command_s(target: str) -> float:
    """Return the seconds of `enigma verify`, the median of a few."""
    found = []
    for _ in range(COMMAND_REPEATS):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pipelines.cli", "verify", target],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def main() -> None:
    """Verify a version many times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--repeats", type=int, default=1000)
    arguments = parser.parse_args()
    with opened(arguments.target) as stored:
        known = trust()
        alarms = [gate for gate in verify(stored, known) if not gate.holds]
        start = time.perf_counter()
        for _ in range(arguments.repeats):
            proof = Proof.read(stored.directory, stored.name)
            gates = [
                *evidence_gates(stored.directory, known, name=stored.name, tags=stored.tags),
                *full_evidence_gates(stored.directory, known),
                *(flow_gates(proof) if stored.name == FLOW else lm_gates(proof)),
            ]
            alarms += [gate for gate in gates if not gate.holds]
        each_ms = (time.perf_counter() - start) * 1000 / arguments.repeats
    count, seconds = arguments.repeats + 1, command_s(arguments.target)
    write(
        "verification",
        [
            row(f"false alarms in {count} verifications", len(alarms), "alarms", target="0",
                met=not alarms),
            row("`enigma verify`", seconds, "s", target="< 10", met=seconds < 10),
            row("one more verification without causality", each_ms, "ms"),
        ],
        ("model-signing", "securesystemslib", "cryptography"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
