"""The pipeline: one module per stage, files in, files out."""

import os

# Threads of torch's OpenMP that wait for each other spin for a while before they sleep. By default
# they spin so long that on a busy machine they keep the cores from the threads they wait for (a
# step of the flow took 25 times as long at a load of 6). This many turns, some 10 us, cost nothing
# on a quiet machine. OpenMP reads the variable when torch is imported, so it is set before.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
