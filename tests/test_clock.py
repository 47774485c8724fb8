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
from paramgolf.clock import (
    Clock,
    leave_out,
    pass_on_start_time,
    process_start,
    seconds_since_start,
    start_time,
)

VARIABLE = "PARAMGOLF_START_TIME"
SELF = Path("/proc/self")
CHILD = "from paramgolf.clock import *; print(start_time(), process_start(Path('/proc/self')))"


def child(**environment: str) -> tuple[float, float]:
    """When a new process with these variables says that it started, and when it did."""
    path = os.pathsep.join(filter(None, sys.path))
    outside = {key: value for key, value in os.environ.items() if key != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**outside, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    said, started = map(float, done.stdout.split())
    return said, started


@pytest.fixture(autouse=True)
def nothing_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been left out, whatever ran in this process before."""
    monkeypatch.setattr(clock, "_waits", [])


@pytest.fixture
def at_second_7(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is second 7 since boot, by a clock that stands still."""
    times = {time.CLOCK_BOOTTIME: 7.0, time.CLOCK_MONOTONIC: 7.0}
    monkeypatch.setattr(time, "clock_gettime", times.__getitem__)
    monkeypatch.delenv(VARIABLE, raising=False)


def test_the_kernel_says_when_a_process_started(tmp_path):
    fields = ["S", *map(str, range(4, 53))]  # as they are numbered in proc(5), from the third on
    (tmp_path / "stat").write_text(f"17 (a) b (c)) {' '.join(fields)}\n")
    assert process_start(tmp_path) == 22 / os.sysconf("SC_CLK_TCK")


def test_a_process_counts_from_its_own_start():
    said, started = child()
    assert said == started


def test_seconds_are_counted_until_now(monkeypatch, at_second_7):
    monkeypatch.setattr(clock, "process_start", lambda folder: 4.5)
    assert seconds_since_start() == 2.5


def test_a_launchers_processes_count_from_the_launcher(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    pass_on_start_time()
    said, _ = child(**{VARIABLE: os.environ[VARIABLE]})
    assert said == start_time() == process_start(SELF)


@pytest.mark.parametrize("later", [0.01, 5.0, 1e9, float("inf")])
def test_a_start_after_the_process_began_is_not_believed(monkeypatch, later):
    started = process_start(SELF)
    monkeypatch.setenv(VARIABLE, str(started + later))
    assert start_time() == started


@pytest.mark.parametrize("value", ["", "yesterday", "nan", "-1e9", "-inf"])
def test_what_is_no_time_since_boot_is_not_believed(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    assert start_time() == process_start(SELF)


def test_what_is_left_out_does_not_count():
    before = start_time()
    leave_out(0.25)
    assert start_time() == before + 0.25


def test_a_clock_counts_what_was_spent_and_not_what_is_paused():
    now = [100.0]
    clock = Clock(spent=7.0, now=lambda: now[0])
    now[0] += 3.0
    with clock.paused():
        now[0] += 50.0
    now[0] += 1.0
    assert clock.elapsed == 11.0


def test_a_machine_that_is_no_linux_counts_too(monkeypatch, at_second_7):
    def missing(folder: Path) -> float:
        raise FileNotFoundError(folder)

    monkeypatch.setattr(clock, "process_start", missing)
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    assert start_time() == 7.0


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
