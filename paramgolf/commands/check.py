"""Check a whole parameter file: unknown keys, types, impossible combinations, all faults at once.

It prints nothing when all is well. Every stage of dvc.yaml begins with it, and names itself, so
that a result is never kept under the hash of other code.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paramgolf.params import PARAMS_PATH, read_yaml
from paramgolf.recipes import check
from paramgolf.stage_code import check_hash

EXAMPLE = """example:
  paramgolf check
  paramgolf check /tmp/other.yaml
  paramgolf check --stage train"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "path", nargs="?", type=Path, default=PARAMS_PATH, help="default: %(default)s"
    )
    parser.add_argument("--stage", help="also check that artifacts/code knows this stage's code")


def run(options: argparse.Namespace) -> int:
    """Raise ParamGolfError where the file is at fault, or the stage's hash is of other code."""
    check(read_yaml(options.path), where=options.path)
    if options.stage:
        check_hash(options.stage)
    return 0
