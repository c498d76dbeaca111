"""Enigma: a reversible language model and a normalizing flow on top of it."""
