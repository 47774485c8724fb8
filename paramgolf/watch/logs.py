"""The ends of a run's log and of its output; a file that still grows is read without its head."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.files import parse_object
from paramgolf.training_log import of_event

TAIL_BYTES = 64 * 1024  # of training's log some 400 steps
RECENT_STEPS = 50  # that a speed is the mean of
WARNINGS = 3  # that are shown
WARNING = re.compile(r"\b(warning|error|killed|damaged|does not fit|diverged)\b", re.IGNORECASE)
PROGRESS = re.compile(r"(\d+)/(\d+) in (\d+) s$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Where training stands by its log; None what the log does not say, or not yet.

    `seconds` are those of training's clock, `silent_seconds` since a line was written.
    """

    step: int
    tokens: int
    seconds: float
    loss: float | None
    tokens_per_second: float | None
    validation: Mapping[str, Any] | None
    silent_seconds: float


@dataclass(frozen=True, slots=True)
class Output:
    """The newest line of a run's output, seconds that are left by it, and the last warnings."""

    line: str
    left_seconds: float | None
    warnings: Sequence[str]


def tail(path: Path) -> list[str]:
    """Return the whole lines among a file's last TAIL_BYTES; none where there is no file."""
    if not path.is_file():  # a pipe is none either: reading it would wait for a writer
        return []
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
            file.seek(start)
            content = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    lines = content.split("\n")[:-1]  # what follows the last newline is being written
    return lines[1:] if start else lines


def training(path: Path) -> Training | None:
    """Return where training stands by its log at `path`, or None without one.

    A line that no training writes is a ParamGolfError.
    """
    records = [parse_object(line, path) for line in tail(path)]
    if not records:
        return None
    steps = of_event(records, "step", ("step", "tokens", "seconds", "loss"), path)[-RECENT_STEPS:]
    validations = of_event(records, "validation", ("step", "val_bpb"), path)
    last: Mapping[str, Any] = steps[-1] if steps else {}
    return Training(
        step=last.get("step", 0),
        tokens=last.get("tokens", 0),
        seconds=last.get("seconds", 0.0),
        loss=last.get("loss"),
        tokens_per_second=_speed(steps),
        validation=validations[-1] if validations else None,
        silent_seconds=max(0.0, time.time() - path.stat().st_mtime),
    )


def _speed(steps: Sequence[Mapping[str, Any]]) -> float | None:
    if len(steps) < 2:
        return None
    seconds: float = steps[-1]["seconds"] - steps[0]["seconds"]
    tokens: int = steps[-1]["tokens"] - steps[0]["tokens"]
    return tokens / seconds if seconds > 0 else None


def output(path: Path) -> Output | None:
    """Return the end of a run's output that was written to `path`, or None without one."""
    lines = [line.strip() for line in tail(path) if line.strip()]
    if not lines:
        return None
    warnings = [line for line in lines if WARNING.search(line)][-WARNINGS:]
    return Output(lines[-1], _left_seconds(lines[-1]), warnings)


def _left_seconds(line: str) -> float | None:
    """Return the seconds that are left by a line of progress, `label: 12/200 in 30 s`."""
    found = PROGRESS.search(line)
    if found is None:
        return None
    done, total, seconds = map(int, found.groups())
    return seconds * (total - done) / done if done else None
