"""`python -m pipelines.cli` is the command `enigma`."""

from pipelines.cli.commands import main

if __name__ == "__main__":
    main()
