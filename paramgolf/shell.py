"""Commands whose answer is wanted, and whose failure is an answer too."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

SECONDS = 10.0


def output_of(
    command: Sequence[str], folder: Path = Path(), *, seconds: float = SECONDS
) -> str | None:
    """Return what a command printed; None where it is missing, failed, or took too long."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
