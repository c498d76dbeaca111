"""The command `enigma`: the command line of the pipeline, where there is one.

The pipeline runs from a checkout of the repository; `pip install enigma-zh` brings the library
alone, without it.
"""

import sys
from importlib import import_module

PIPELINE = "pipelines.cli.commands"


def main() -> None:
    """Run the command line of the checkout that this package was installed from."""
    try:
        commands = import_module(PIPELINE)
    except ModuleNotFoundError as error:
        if not PIPELINE.startswith(str(error.name)):
            raise
        sys.exit(
            "error: expected the pipeline beside the library, and only the library is installed; "
            "to fix this: clone the repository and run `make setup` there"
        )
    commands.main()


if __name__ == "__main__":
    main()
