"""Check what this machine can run: software, GPUs, memory, disk, Git, DVC, the network, recipes.

Each line is ok, a warning or a fault, with its remedy. The exit code is 1 where there is a fault.
Nothing is changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from paramgolf.doctor.check import Check
from paramgolf.doctor.survey import survey

EXAMPLE = """example:
  paramgolf doctor
  paramgolf doctor --json"""
COLOURS = {"ok": "green", "warning": "yellow", "fault": "red"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(options: argparse.Namespace) -> int:
    """Print the findings; code 1 where one is a fault."""
    findings = list(survey(Path()))
    faulty = any(finding.state == "fault" for finding in findings)
    if options.json:
        content = {"ok": not faulty, "findings": [dataclasses.asdict(f) for f in findings]}
        print(json.dumps(content, indent=1))
    else:
        _show(findings)
    return int(faulty)


def _show(findings: Sequence[Check]) -> None:
    from rich.text import Text

    from paramgolf.terminal import Console, facts

    rows = []
    for finding in findings:
        text = Text(finding.text)
        if finding.remedy:
            text.append(f"\n-> {finding.remedy}", style="bold")
        rows.append((Text(finding.state, style=COLOURS[finding.state]), finding.name, text))
    Console().print(facts(rows))
