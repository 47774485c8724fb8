"""Seconds of each part of an evaluation."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from paramgolf.clock import seconds_since_start
from paramgolf.runtime import synchronize


class Timing:
    """Seconds spent in named parts; a part may be entered many times.

    Attributes:
        seconds: of each part so far.
        before: seconds of a process that was cut off and that this one goes on from.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.before = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the duration of the block to part `name`, the device's work included."""
        start = time.perf_counter()
        yield
        synchronize(self._device)
        self.seconds[name] += time.perf_counter() - start

    @property
    def total(self) -> float:
        """Seconds since the command started: imports, decompression and compilation are in."""
        return self.before + seconds_since_start()

    @property
    def metrics(self) -> dict[str, float]:
        """The seconds of each part, as `seconds_NAME`, and in all."""
        parts = {f"seconds_{name}": seconds for name, seconds in self.seconds.items()}
        return {**parts, "seconds": self.total}
