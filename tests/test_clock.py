"""Seconds since the start: a launcher's count, and nothing that is said from outside shortens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paramgolf import clock
from paramgolf.clock import Clock, leave_out, pass_on_start_time, seconds_since_start, start_time

VARIABLE = "PARAMGOLF_START_TIME"
CHILD = """
from paramgolf.clock import seconds_since_start, start_time
print(start_time(), seconds_since_start())
"""


def child(**environment: str) -> tuple[float, float]:
    """Start time and seconds of a new process with these variables."""
    path = os.pathsep.join(filter(None, sys.path))
    outside = {key: value for key, value in os.environ.items() if key != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**outside, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    started, seconds = map(float, done.stdout.split())
    return started, seconds


def test_a_process_counts_from_its_own_start():
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    started, seconds = child()
    assert before - 0.02 <= started  # the kernel counts in hundredths
    assert 0 < seconds <= time.clock_gettime(time.CLOCK_BOOTTIME) - started + 0.02


def test_a_launchers_processes_count_from_the_launcher(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    pass_on_start_time()
    started, _ = child(**{VARIABLE: os.environ[VARIABLE]})
    assert started == pytest.approx(start_time())


@pytest.mark.parametrize("later", [5.0, 1e9, float("inf")])
def test_a_start_after_the_process_began_is_not_believed(later):
    forged = time.clock_gettime(time.CLOCK_BOOTTIME) + later
    _, seconds = child(**{VARIABLE: str(forged)})
    assert 0 < seconds < 60


@pytest.mark.parametrize("value", ["", "yesterday", "nan", "-1e9", "-inf"])
def test_what_is_no_time_since_boot_is_not_believed(value):
    _, seconds = child(**{VARIABLE: value})
    assert 0 < seconds < 60


def test_what_is_left_out_does_not_count():
    before = start_time()
    leave_out(0.25)
    assert start_time() == pytest.approx(before + 0.25)
    leave_out(-0.25)
    assert seconds_since_start() > 0


def test_a_clock_counts_what_was_spent_and_not_what_is_paused():
    now = [100.0]
    clock = Clock(spent=7.0, now=lambda: now[0])
    now[0] += 3.0
    with clock.paused():
        now[0] += 50.0
    now[0] += 1.0
    assert clock.elapsed == 11.0


def test_a_machine_that_is_no_linux_counts_too(monkeypatch):
    def missing(folder: Path) -> float:
        raise FileNotFoundError(folder)

    monkeypatch.setattr(clock, "process_start", missing)
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert abs(start_time() - time.monotonic()) < 1.0


def test_no_seconds_are_counted_by_the_clock_on_the_wall():
    """It can be set while a run goes on; the file's time that `watch` reads is of that clock."""
    root = Path(__file__).parents[1]
    wall = re.compile(r"time\.time\(|time_ns\(|datetime\.now\(|CLOCK_REALTIME")
    found = {
        path.relative_to(root).as_posix()
        for folder in ("paramgolf", "stages")
        for path in (root / folder).rglob("*.py")
        if wall.search(path.read_text())
    }
    assert found == {"paramgolf/watch/logs.py", "paramgolf/commands/submit.py"}
