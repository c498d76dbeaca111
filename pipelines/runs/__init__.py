"""A training run on disk, and what monitors it.

Nothing here affects a byte of an output.
"""
