"""What commands print for a person: on a terminal, or into a file."""

import sys

from rich.console import Console

LINE_IN_A_FILE = 2000


def tree_console() -> Console:
    """A console that breaks long lines on a terminal, and leaves them whole in a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else LINE_IN_A_FILE)
