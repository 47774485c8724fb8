"""Check a whole parameter file: unknown keys, types, impossible combinations, all faults at once.

It prints nothing when all is well. Every stage begins with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paramgolf.params import PARAMS_PATH, read_yaml
from paramgolf.recipes import check

EXAMPLE = """example:
  paramgolf check
  paramgolf check /tmp/other.yaml"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "path", nargs="?", type=Path, default=PARAMS_PATH, help="default: %(default)s"
    )


def run(options: argparse.Namespace) -> int:
    """Raise ParamGolfError where the file is at fault."""
    check(read_yaml(options.path), where=options.path)
    return 0
