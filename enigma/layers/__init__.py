"""Layers that torch lacks or computes more slowly."""
