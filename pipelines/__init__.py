"""The pipeline: one module per stage, files in, files out."""

import os

# Threads that wait must sleep. By default torch's OpenMP spins, which on a busy machine takes
# the cores from the threads that it waits for: small operations became 13 to 40 times slower.
# OpenMP reads the variable when it is loaded, so it is set before any module imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
