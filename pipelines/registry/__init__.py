"""Registered versions: their proof, their gates, promotion and lineage."""
