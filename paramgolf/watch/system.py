"""What the system tells of a run: the stage that is under way."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from paramgolf.clock import process_start

PROC = Path("/proc")
SCRIPT = re.compile(r"(?:^|/)stages/(\w+)\.py$")


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage under way: its name, its first process, and seconds since that was started."""

    name: str
    process: int
    seconds: float


def stage_under_way(root: Path) -> Stage | None:
    """Return the stage that a process runs in the project's folder; the first of several.

    A stage of several processes began with its launcher, the oldest.
    """
    return max(_stages(root.resolve()), key=lambda stage: stage.seconds, default=None)


def _stages(root: Path) -> Iterator[Stage]:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    for folder in PROC.glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            name = _stage_of(words)
            if name is None or (folder / "cwd").readlink() != root:
                continue
            seconds = now - process_start(folder)
        except OSError:  # it has ended, or is another user's
            continue
        yield Stage(name, int(folder.name), seconds)


def _stage_of(words: Sequence[str]) -> str | None:
    """Return the stage whose script a command line gives to Python, as torchrun does too."""
    if not Path(words[0]).name.startswith("python"):
        return None
    return next((found[1] for word in words if (found := SCRIPT.search(word))), None)
