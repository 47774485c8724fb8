"""Seconds since the start: a launcher's count, and nothing that is said from outside shortens."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

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
