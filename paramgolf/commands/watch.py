"""Show what the run in this folder does: stage, step, loss, speed, what is left, GPUs, warnings.

It reads files only: training's log, the system's tables, and the run's output where that is kept
(`dvc repro 2>&1 | tee repro.log`), which alone tells how far the other stages are.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paramgolf.arguments import amount
from paramgolf.errors import ParamGolfError

EXAMPLE = """example:
  paramgolf watch
  paramgolf watch --once --json
  paramgolf watch --host root@gpu.example --folder paramgolf"""
OUTPUT = Path("repro.log")
FOLDER = "paramgolf"
LONGEST_SECONDS = 86_400  # between two looks; the system sleeps no more than 9e9


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    once = "show it once and end, as without a terminal"
    parser.add_argument("--once", action="store_true", help=once)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs; once")
    every = "between two looks; default: %(default)s"
    parser.add_argument("--every", type=interval, default=5.0, metavar="SECONDS", help=every)
    output = f"where the run's output is kept; default: {OUTPUT}, if it is there"
    parser.add_argument("--output", type=Path, metavar="FILE", help=output)
    host = "watch the run there, over ssh; ssh://USER@HOST:PORT where the port is not 22"
    parser.add_argument("--host", metavar="USER@HOST", help=host)
    folder = f"the project's folder on that host; default: {FOLDER}"
    parser.add_argument("--folder", help=folder)


def interval(text: str) -> float:
    """Read seconds above 0, at most a day."""
    seconds = amount(text)
    if seconds > LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"must be at most {LONGEST_SECONDS:,} s, not {text}")
    return seconds


def run(options: argparse.Namespace) -> int:
    """Show the state once, or again and again until it is interrupted."""
    if options.host:
        return over_ssh(options)
    if options.folder is not None:
        raise ParamGolfError(
            "--folder goes with --host alone", fix=f"cd {options.folder} && paramgolf watch"
        )
    # here: a watch over ssh needs nothing of the project
    from paramgolf.files import file_size
    from paramgolf.watch.state import state

    if options.output and (options.once or options.json):  # else it is waited for
        file_size(options.output, fix="name the file that keeps the run's output")
    if options.json:
        print(json.dumps(state(Path(), options.output or OUTPUT), indent=1, sort_keys=True))
        return 0
    _show(options)
    return 0


def over_ssh(options: argparse.Namespace) -> int:
    """Run this command on another host, with what is installed there; return ssh's exit code."""
    words = [".venv/bin/paramgolf", "watch", "--every", str(options.every)]
    words += ["--output", str(options.output)] if options.output else []
    words += [f"--{name}" for name in ("once", "json") if getattr(options, name)]
    terminal = [] if options.once or options.json else ["-t"]
    there = f"cd {shlex.quote(options.folder or FOLDER)} && {shlex.join(words)}"
    return subprocess.run(["ssh", *terminal, options.host, there]).returncode


def _show(options: argparse.Namespace) -> None:
    from rich.live import Live

    from paramgolf.terminal import Console, facts

    console = Console()
    if options.once or not console.is_terminal:  # a pipe would get nothing before the end
        console.print(facts(shown(options.output)))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(facts(shown(options.output)), refresh=True)
            time.sleep(options.every)


def shown(output: Path | None) -> Iterator[tuple[str, str]]:
    """Yield what is known now; of a file `output` that the user named, also that it is missing."""
    from paramgolf.watch.state import state

    yield from lines(state(Path(), output or OUTPUT))
    if output and not output.exists():
        yield "output", f"{output} is not there yet"


def lines(state: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is known, a name and a line each."""
    stage, training = state["stage"], state["training"]
    if stage is None:
        yield "stage", "none under way"
    else:
        yield "stage", f"{stage['name']}, {clock(stage['seconds'])} since it began"
    if training:
        yield "training" if stage else "last training", training_line(training)
    if validation := training and training["validation"]:
        yield (
            "validation",
            f"{validation['val_bpb']:.4f} bits per byte at step {validation['step']}",
        )
    if state["left_seconds"] is not None:
        yield "left", f"{clock(state['left_seconds'])} of this stage"
    for budget in state["budgets"]:
        left, limit = clock(budget["left_seconds"]), clock(budget["limit_seconds"])
        yield budget["name"], f"{left} of {limit} left"
    for gpu in state["gpus"]:
        yield f"GPU {gpu['index']}", gpu_line(gpu)
    if state["output"]:
        yield "output", state["output"]
    for warning in state["warnings"]:
        yield "warning", warning


def training_line(training: dict[str, Any]) -> str:
    """Return step, loss and speed, as far as they are known."""
    if not training["step"]:
        return "no step yet: it starts or compiles"
    line = f"step {training['step']:,}, loss {training['loss']:.4f}"
    if training["tokens_per_second"]:
        line += f", {training['tokens_per_second']:,.0f} tokens/s"
    return f"{line}, {clock(training['seconds'])} on its clock"


def gpu_line(gpu: dict[str, Any]) -> str:
    """Return a GPU's memory, power and load, as far as it says them."""
    parts = [gpu["name"]]
    if gpu["used_mib"] is not None and gpu["total_mib"] is not None:
        parts.append(f"{gpu['used_mib'] / 1024:.1f} of {gpu['total_mib'] / 1024:.0f} GiB")
    if gpu["watts"] is not None:
        parts.append(f"{gpu['watts']:.0f} W")
    if gpu["busy_percent"] is not None:
        parts.append(f"{gpu['busy_percent']:.0f} % busy")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """Return seconds as minutes and seconds, `9:05`, with a sign where they are overdrawn."""
    minutes, rest = divmod(round(abs(seconds)), 60)
    return f"{'-' if seconds < 0 else ''}{minutes}:{rest:02d}"
