"""`python -m pipelines.cli` is the command `enigma`."""

from pipelines.cli.commands import main

main()
