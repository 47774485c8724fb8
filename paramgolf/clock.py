"""Seconds that count against a budget, and seconds since the process was started."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_START_FIELD = 19  # of /proc/self/stat after the name: start time in clock ticks since boot


def seconds_since_start() -> float:
    """Return the seconds since the process started, imports included.

    Where /proc is absent, the processor time used so far.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return time.process_time()
    started = int(fields[_START_FIELD]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


class Clock:
    """Counts seconds from `spent` on; `now` is injected so that budgets can be tested."""

    def __init__(self, spent: float = 0.0, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._origin = now() - spent

    @property
    def elapsed(self) -> float:
        """Seconds spent so far."""
        return self._now() - self._origin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block's time out: validation and checkpoints do not train."""
        start = self._now()
        yield
        self._origin += self._now() - start
