"""`enigma history`: the ledger of promotions, for people."""

from rich.text import Text
from rich.tree import Tree

from pipelines.base.console import tree_console
from pipelines.base.errors import GateError
from pipelines.registry import ledger
from pipelines.registry.names import CHAMPION, aliased
from pipelines.registry.promote import restore as restore_alias
from pipelines.tracking.store import connect


def show_history(name: str, *, restore: bool = False) -> None:
    """Print every move of a champion, and compare the alias with the last one.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        restore: First set the alias to the last champion of the ledger.

    Raises:
        GateError: `ledger`, if the alias differs from the ledger.
    """
    if restore:
        restore_alias(name)
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
            f"{name}: expected the alias at version {expected}, the ledger's champion, got {got}",
            "run `enigma history --restore` to move the alias back, or `enigma promote` to record "
            "the move",
        )
    console.print(f"champion of {name}: {got or '(none)'}, as the ledger says")
