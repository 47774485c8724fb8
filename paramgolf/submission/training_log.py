"""A seed's log as text: the machine, each step, and the figures of every later stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from paramgolf.experiments.read import STAGES
from paramgolf.submission.collect import SeedRun


def training_log(run: SeedRun) -> str:
    """Return the log of a run, one line per event: `event key=value ...`."""
    return "".join(f"{line}\n" for line in _lines(run))


def _lines(run: SeedRun) -> Iterator[str]:
    yield _line("start", {"seed": run.seed, **run.log.environment})
    events = [*run.log.steps, *run.log.validations]  # a step's validation comes after it
    for event in sorted(events, key=lambda event: event["step"]):
        yield _line(event["event"], {k: v for k, v in event.items() if k != "event"})
    for stage in STAGES:
        prefix = f"{stage}."
        own = {
            key.removeprefix(prefix): value
            for key, value in run.metrics.items()
            if key.startswith(prefix) and not isinstance(value, list)
        }
        yield _line(stage, own)


def _line(event: str, values: Mapping[str, Any]) -> str:
    words = (f"{key}={str(value).replace(' ', '_')}" for key, value in values.items())
    return " ".join([event, *words])
