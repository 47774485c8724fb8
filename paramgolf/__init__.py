"""Parameter golf as a staged, reproducible pipeline; importing the package does next to nothing."""

import os

# OpenMP reads this when torch is loaded. Threads that spin while they wait make a training step
# ten times slower as soon as another program uses a core; on an idle machine sleeping costs 14 %.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The BLAS of numpy, whose threads spin too: the coder's matrices are small, and beside a busy
# process its twenty factorisations took 20 s instead of a half.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
