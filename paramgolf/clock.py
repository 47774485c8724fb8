"""Seconds that count against a budget, and seconds since the command was started."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

START_VARIABLE = "PARAMGOLF_START_TIME"
_START_FIELD = 19  # of /proc/PID/stat after the name: start time in clock ticks since boot
_waits: list[float] = []  # seconds of this process that count against no budget


def start_time() -> float:
    """Return when the command started, seconds since boot; what `leave_out` was told is not in it.

    That is when this process started, or its launcher, which `pass_on_start_time` left in the
    environment. A launcher starts before its processes: a time that is no earlier than this
    process's own was left by nobody, or by somebody who would have the seconds look fewer.
    """
    try:
        started = process_start(Path("/proc/self"))
    except FileNotFoundError:  # no Linux
        started = _now()
    with contextlib.suppress(KeyError, ValueError):
        passed = float(os.environ[START_VARIABLE])
        if 0 <= passed <= started:  # false of what is no number, too
            started = passed
    return started + sum(_waits)


def pass_on_start_time() -> None:
    """Let processes that are started from here count from this one's start."""
    os.environ[START_VARIABLE] = str(start_time())


def leave_out(seconds: float) -> None:
    """Count `seconds` that have passed in this process, waiting for a GPU, against no budget."""
    _waits.append(seconds)


def seconds_since_start() -> float:
    """Return the seconds since the command started, imports and launcher included."""
    return _now() - start_time()


def process_start(folder: Path) -> float:
    """Return when the process whose /proc/PID this is started, seconds since boot."""
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return int(fields[_START_FIELD]) / os.sysconf("SC_CLK_TCK")


def _now() -> float:
    """Return seconds since boot, where that is told; no setting of a clock moves them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


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
