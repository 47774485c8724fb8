"""Seconds that count against a budget, and seconds since the process was started."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

START_VARIABLE = "PARAMGOLF_START_TIME"
_START_FIELD = 19  # of /proc/self/stat after the name: start time in clock ticks since boot


def start_time() -> float:
    """Return when the command started, seconds since boot.

    That is when this process started, or what `pass_on_start_time` left in the environment: a
    launcher's processes count from the launcher. Where /proc is absent, now.
    """
    if START_VARIABLE in os.environ:
        return float(os.environ[START_VARIABLE])
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return _now()
    return int(fields[_START_FIELD]) / os.sysconf("SC_CLK_TCK")


def pass_on_start_time() -> None:
    """Let processes that are started from here count from this one's start."""
    os.environ[START_VARIABLE] = str(start_time())


def seconds_since_start() -> float:
    """Return the seconds since the command started, imports and launcher included."""
    return _now() - start_time()


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


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
