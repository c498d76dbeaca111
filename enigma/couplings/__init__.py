"""Couplings: how one half of the stream moves the other, and the networks that decide it."""
