"""Run every stage at its full shapes on few tokens, before a run is paid for.

The run is that of params.yaml, or of a recipe that is named, with changes. It reads data/tokens
(`dvc repro audit`) and writes to .cache/rehearsal and, where runtime.mirror names a place, to a
folder of its own there, to test that too. Compiled GPU code is kept for the run that follows.
Scores of a rehearsal mean nothing. The exit code is 1 if a stage fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from paramgolf.arguments import add_recipe
from paramgolf.estimate.devices import GIB
from paramgolf.recipes import changed, chosen

if TYPE_CHECKING:
    from paramgolf.experiments.rehearsal import Rehearsed

EXAMPLE = """example:
  paramgolf rehearse
  paramgolf rehearse pr1493 train.micro_batch_tokens=49152 --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_recipe(parser, optional=True)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(options: argparse.Namespace) -> int:
    """Rehearse, and print each stage as it ends."""
    _, _, content = chosen(options.name, options.assignments)
    # here: they import torch
    from paramgolf.experiments.rehearsal import FOLDER, rehearse, shortened

    content = changed(content, shortened(content), "the rehearsal")
    found: list[Rehearsed] = []
    for stage in rehearse(content):
        found.append(stage)
        if not options.json:
            print(line(stage), flush=True)
    failed = found[-1].reason is not None
    if options.json:
        print(json.dumps([dataclasses.asdict(stage) for stage in found], indent=1))
    elif failed:
        print(f"what it said: {FOLDER}/{found[-1].stage}.log")
    else:
        print(f"{sum(stage.seconds or 0 for stage in found):.0f} s in all")
    return int(failed)


def line(stage: Rehearsed) -> str:
    """Return what is told of a stage."""
    if stage.reason is not None:
        return f"{stage.stage:<13} FAILED: {stage.reason}"
    text = f"{stage.stage:<13} {stage.seconds:6.1f} s"
    if stage.startup_seconds is not None:
        text += f", {stage.startup_seconds:.1f} of them until the first step"
    if stage.peak_memory_bytes:
        text += f", {stage.peak_memory_bytes / GIB:.1f} GiB of memory at the peak"
    return text
