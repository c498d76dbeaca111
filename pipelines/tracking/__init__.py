"""MLflow runs and git state: what is recorded about a run.

Nothing here affects a byte of an output.
"""
