"""Bijections of the stream: the contract, the machine made of them, and the grid of exact mode."""
