"""Seconds of each part of an evaluation."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from paramgolf.runtime import synchronize


class Timing:
    """Seconds spent in named parts; a part may be entered many times."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the duration of the block to part `name`, the device's work included."""
        start = time.perf_counter()
        yield
        synchronize(self._device)
        self._seconds[name] += time.perf_counter() - start

    @property
    def metrics(self) -> dict[str, float]:
        """The seconds of each part, as `seconds_NAME`."""
        return {f"seconds_{name}": seconds for name, seconds in self._seconds.items()}
