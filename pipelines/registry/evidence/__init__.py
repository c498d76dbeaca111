"""Signed evidence: in-toto statements in DSSE envelopes, checked without MLflow, DVC or network."""
