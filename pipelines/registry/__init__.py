"""Registered models: their proof, their gates, promotion and lineage."""
