"""Joules that GPUs have used, as NVIDIA's driver counts them (NVML)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from paramgolf.nvml import LIBRARY, open_nvml


class EnergyMeter:
    """Reads the counters of GPUs, as CUDA_VISIBLE_DEVICES names them; None without a driver."""

    def __init__(self, library: str = LIBRARY) -> None:
        self._nvml = open_nvml(library)

    def joules(self, devices: Sequence[str]) -> float | None:
        """Return what the GPUs have used together since the driver was loaded."""
        found = [self._millijoules(device) for device in devices]
        known = [one for one in found if one is not None]
        return sum(known) / 1000 if known and len(known) == len(found) else None

    def _millijoules(self, device: str) -> int | None:
        """Return one GPU's counter; GPUs older than Volta, and slices of one, have none."""
        if self._nvml is None:
            return None
        handle, counted = ctypes.c_void_p(), ctypes.c_ulonglong()
        if device.isdecimal():
            failed = self._nvml.nvmlDeviceGetHandleByIndex_v2(int(device), ctypes.byref(handle))
        else:
            failed = self._nvml.nvmlDeviceGetHandleByUUID(device.encode(), ctypes.byref(handle))
        if failed or self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(counted)):
            return None
        return counted.value
