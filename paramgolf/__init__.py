"""Parameter golf as a staged, reproducible pipeline; importing the package does next to nothing."""

import os

# OpenMP reads this when torch is loaded. Threads that spin while they wait make a training step
# ten times slower as soon as another program uses a core; on an idle machine sleeping costs 14 %.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
