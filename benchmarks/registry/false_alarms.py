"""How often a whole version is refused, and how long a verification takes.

    python -m benchmarks.registry.false_alarms enigma-lm@champion --repeats 1000

Run it where the store is, after `make demo`. Every repetition checks the signatures, the hash of
every file, OpenSSF's signature, the chain of stages and the gates of the reports again. Causality
on the weights is proven in the first one, which is timed as a user sees it, imports included.
"""

import argparse
import time

from benchmarks.record import row, write
from pipelines.registry.evidence.keys import trust
from pipelines.registry.evidence.stored import opened
from pipelines.registry.evidence.verify import verify
from pipelines.registry.evidence.version import evidence_gates, full_evidence_gates
from pipelines.registry.gates import Proof, flow_gates, lm_gates
from pipelines.registry.names import FLOW


def main() -> None:
    """Verify a version many times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--repeats", type=int, default=1000)
    arguments = parser.parse_args()
    with opened(arguments.target) as stored:
        start = time.perf_counter()
        known = trust()
        alarms = [gate for gate in verify(stored, known) if not gate.holds]
        first_s = time.perf_counter() - start
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
    count = arguments.repeats + 1
    write(
        "verification",
        [
            row(f"false alarms in {count} verifications", len(alarms), "alarms", target="0",
                met=not alarms),
            row("one verification, causality and imports included", first_s, "s", target="10 s",
                met=first_s < 10),
            row("one more verification without causality", each_ms, "ms"),
        ],
        ("model-signing", "securesystemslib", "cryptography"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
