"""NVIDIA's management library (NVML), which comes with the driver and does not start CUDA."""

from __future__ import annotations

import ctypes
import functools

LIBRARY = "libnvidia-ml.so.1"


@functools.cache
def open_nvml(library: str = LIBRARY) -> ctypes.CDLL | None:
    """Return the library, ready for use; None where there is no driver."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return None
    return None if nvml.nvmlInit_v2() else nvml


def gpu_count() -> int | None:
    """Return how many GPUs the machine has, whichever a process may see; None if nobody tells."""
    nvml, count = open_nvml(), ctypes.c_uint()
    if nvml is None or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return None
    return count.value
