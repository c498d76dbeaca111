"""MLflow runs and git state: what is recorded about a run.

It decides no byte of an output.
"""
