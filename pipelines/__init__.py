"""The pipeline: one module per stage, files in, files out."""

import os

# Waiting threads of torch's OpenMP spin before they sleep. By default they spin so long that on a
# busy machine they hold the cores that the threads they wait for need (a step of the flow took 25
# times as long at a load of 6, 8 times with this many turns, which cost nothing when it is quiet).
# OpenMP reads the variable when torch is imported, so it must be set before.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
