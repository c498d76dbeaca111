"""`enigma verify` and `enigma export`: a version that strangers can check."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.base.errors import GateError, UserError
from pipelines.cli.gate_table import print_gates
from pipelines.registry.evidence.keys import trust
from pipelines.registry.evidence.stored import opened, pack
from pipelines.registry.evidence.verify import verify


def verify_version(target: str, keys: Sequence[Path]) -> None:
    """Check a version, and print every gate.

    Args:
        target: A directory, a bundle, or a reference such as enigma-lm@champion.
        keys: Public keys that are trusted; empty for those of `params.yaml` and the user's own.

    Raises:
        UserError: If there is no such version.
        GateError: At the first gate that refuses.
    """
    trusted = trust(keys or None)
    with opened(target) as stored:
        gates = verify(stored, trusted)
        print_gates(f"{stored.name}, {target}", gates)
    for gate in gates:
        if not gate.holds:
            raise GateError(gate.name, f"{target}: {gate.comparison}", gate.fix)


def export_version(bundle: Path, reference: str) -> str:
    """Pack a version with its evidence into a tar file.

    Args:
        bundle: The file.
        reference: enigma-lm@champion, enigma-flow/3, ...

    Returns:
        What was packed.

    Raises:
        UserError: If there is no such version, or the file cannot be written.
        GateError: If it is not as it was signed.
    """
    from pipelines.registry.lineage import resolve
    from pipelines.registry.versions import downloaded
    from pipelines.tracking.store import connect

    name, number = resolve(reference)
    with downloaded(connect(), name, number) as version:
        for gate in version.evidence_gates():
            if not gate.holds:
                raise GateError(gate.name, f"{reference}: {gate.comparison}", gate.fix)
        try:
            pack(version.directory, bundle, f"{name}-{number}")
        except OSError as error:
            raise UserError(
                f"expected a file that can be written, got {bundle}: {error.strerror}",
                "name a file in a folder where you may write",
            ) from None
    return f"{name} version {number}"
