"""Prefect flows: they run stages, they never compute."""
