"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found; a fault stops the pipeline, a warning costs speed or a convenience."""

    name: str
    state: Literal["ok", "warning", "fault"]
    text: str
    remedy: str = ""


def ok(name: str, text: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding(name, "ok", text)


def warning(name: str, text: str, remedy: str) -> Finding:
    """Return a finding that the user may live with."""
    return Finding(name, "warning", text, remedy)


def fault(name: str, text: str, remedy: str) -> Finding:
    """Return a finding that must be mended."""
    return Finding(name, "fault", text, remedy)
