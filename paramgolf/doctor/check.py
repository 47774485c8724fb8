"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """What was seen; a fault stops the pipeline, a warning costs speed or a convenience."""

    name: str
    state: Literal["ok", "warning", "fault"]
    text: str
    remedy: str = ""


def ok(name: str, text: str) -> Check:
    """Return a check that asks for nothing."""
    return Check(name, "ok", text)


def warning(name: str, text: str, remedy: str) -> Check:
    """Return a check that the user may live with."""
    return Check(name, "warning", text, remedy)


def fault(name: str, text: str, remedy: str) -> Check:
    """Return a check that must be mended."""
    return Check(name, "fault", text, remedy)
