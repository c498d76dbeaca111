"""The ledger as a person reads it."""

from rich.text import Text
from rich.tree import Tree

from pipelines.base.console import tree_console
from pipelines.base.errors import GateError
from pipelines.registry import ledger
from pipelines.registry.names import CHAMPION, aliased
from pipelines.tracking.store import connect


def show_history(name: str) -> None:
    """Print every move of a champion, and check the alias against the last.

    Args:
        name: `enigma-lm` or `enigma-flow`.

    Raises:
        GateError: `ledger`, if the alias is not where the ledger ends.
    """
    entries = ledger.read()
    tree = Tree(Text(name, style="bold"))
    for entry in entries:
        if entry["model"] == name:
            move = f"{entry['from'] or '(none)'} -> {entry['to']}"
            head = f"{entry['when']} {entry['who']}: {entry['action']} {move}"
            branch = tree.add(Text(head))
            for gate, figures in entry["why"].items():
                branch.add(Text(f"{gate}: {figures}", style="dim"))
    console = tree_console()
    console.print(tree)
    recorded = ledger.champions(entries, name)
    expected = recorded[-1] if recorded else None
    got = aliased(connect(), name, CHAMPION)
    if got != expected:
        raise GateError(
            "ledger",
            f"{name}: the ledger ends with version {expected}, the alias is at {got}",
            "`enigma history --restore` puts the alias back; `enigma promote` records a move "
            "that left no line",
        )
    console.print(f"champion of {name}: {got or '(none)'}, as the ledger says")
