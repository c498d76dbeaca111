"""The command `enigma`."""
