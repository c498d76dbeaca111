"""A training run on disk, and who watches it.

It decides no byte of an output.
"""
