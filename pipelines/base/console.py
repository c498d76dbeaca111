"""The console of commands whose output people read, on a terminal or in a file."""

import sys

from rich.console import Console

FILE_LINE_WIDTH = 2000


def tree_console() -> Console:
    """Make a console that wraps long lines on a terminal but not in a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else FILE_LINE_WIDTH)
