"""`enigma history`: the ledger of promotions, for people."""

from rich.text import Text
from rich.tree import Tree

from pipelines.base.console import tree_console
from pipelines.registry import ledger
from pipelines.registry.promote import restore as restore_alias
from pipelines.registry.versions import downloaded
from pipelines.tracking.store import connect


def show_history(name: str, *, restore: bool = False) -> None:
    """Print every move of a champion, and check the ledger, the alias and the champion's files.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        restore: First set the alias to the last champion of the ledger.

    Raises:
        GateError: `ledger`, if the alias differs from the ledger, or by the name of what the
            champion's files fail.
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
    client = connect()
    record = ledger.check_alias(client, name)
    if record is None:
        console.print(f"champion of {name}: (none)")
        return
    with downloaded(client, name, record["version"]) as champion:
        champion.check(client)
    console.print(
        f"champion of {name}: {record['version']}, as the ledger says; its files are as signed"
    )
