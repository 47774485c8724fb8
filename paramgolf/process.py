"""What a process of the project sets for itself when it starts; needs neither torch nor numpy.

Importing the package changes nothing. Stages, the command `paramgolf` and train_gpt.py call
`start_process` before anything else, their imports included: torch and numpy read the environment
while they are loaded. Processes that these start inherit it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

# OpenMP's threads spin while they wait. That makes a training step ten times slower as soon as
# another program uses a core; on an idle machine sleeping costs 14 %.
# The threads of numpy's BLAS spin too. The coder's matrices are small, and beside a busy process
# its twenty factorizations took 20 s instead of half a second.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}

TORCHRUN_VARIABLE = "TORCHELASTIC_RUN_ID"  # that torchrun leaves to its processes
GROUP_VARIABLE = "PARAMGOLF_GROUP"  # that paramgolf.launch leaves to its own: a folder they share
SIGNALLED = 128  # and the signal's number is what a shell reports of a program that it ended


def start_process() -> None:
    """Set the environment of this process, but for what its user has set.

    A process that dvc, the laboratory, torchrun or a stage of several processes started ends with
    it: these leave a variable. Any other outlives its parent, as under nohup.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "DVC_ROOT" in os.environ or is_rank():
        end_with_parent()


def is_rank() -> bool:
    """Tell whether this is one of several processes, of a launcher's: torchrun's or our own."""
    return TORCHRUN_VARIABLE in os.environ or GROUP_VARIABLE in os.environ


def cores() -> int:
    """Return how many cores this process may use; only Linux can tell them from all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with_parent() -> None:
    """Ask Linux to end this process with its parent, so that a killed stage leaves no orphan."""
    with contextlib.suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def keep_freed_memory() -> None:
    """Ask glibc to keep large blocks that are freed, not to map them anew for each tensor.

    Without it every step on a CPU faults its activations in again: 14 % of the sample's step.
    """
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
