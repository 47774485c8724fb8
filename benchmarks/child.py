"""Processes that benchmarks start: what one answers, and what one takes."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paramgolf.errors import ParamGolfError

SAMPLE_SECONDS = 0.05


def answer_of(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Any:
    """Run a script of Python, and return the JSON that the last line of its output holds."""
    command = [sys.executable, *arguments]
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise ParamGolfError(f"{' '.join(arguments)} ended with {run.returncode}")
    line = run.stdout.splitlines()[-1]
    print(*arguments[1:], line, flush=True)
    return json.loads(line)


class Measured(NamedTuple):
    """What a command took: seconds, its largest resident bytes, the processor's seconds."""

    seconds: float
    memory: int
    processor: float


def measured(
    arguments: Sequence[str],
    folder: Path = Path(),
    environment: Mapping[str, str] | None = None,
) -> Measured:
    """Run a script of Python in a folder; a failure ends the benchmark.

    Bytes are those of all its processes together, sampled; pages that they share count once for
    each.
    """
    import psutil  # not on every machine with a GPU

    start, before, memory = time.perf_counter(), _processor_seconds(), 0
    with subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment) as child:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended between listing and look
                every = (process, *process.children(recursive=True))
                memory = max(memory, sum(one.memory_info().rss for one in every))
            time.sleep(SAMPLE_SECONDS)
    if child.returncode:
        raise ParamGolfError(f"{' '.join(arguments)} ended with {child.returncode}")
    return Measured(time.perf_counter() - start, memory, _processor_seconds() - before)


def _processor_seconds() -> float:
    """Return the processor's seconds of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
