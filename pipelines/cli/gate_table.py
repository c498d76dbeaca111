"""Gates as a table: name, what was found, what was expected, the outcome."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.registry.gates import Gate


def print_gates(title: str, gates: Sequence[Gate]) -> None:
    """Print gates to stdout.

    Args:
        title: What they judge.
        gates: In the order in which they were checked.
    """
    table = Table("gate", "found", "expected", "", title=title, box=box.SIMPLE)
    for gate in gates:
        # Text: what a file says is shown as it stands, and read as no markup.
        row = (gate.name, gate.figures, gate.bound, "pass" if gate.holds else "REFUSED")
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)
