"""What commands take alike, for argparse: a recipe with changes, and numbers within their range."""

from __future__ import annotations

import argparse
import math


def add_recipe(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Let a command take a recipe, `name`, and changes to it, `assignments`.

    Where it is `optional`, the name is None, or the first of the changes: params.yaml is meant.
    """
    known = "a recipe (see `paramgolf recipes`)"
    if optional:
        known += "; default: what params.yaml holds"
    parser.add_argument("name", metavar="RECIPE", nargs="?" if optional else None, help=known)
    parser.add_argument(
        "assignments",
        metavar="section.key=value",
        nargs="*",
        default=[],  # else argparse calls it required where RECIPE is missing
        help="changes; values are YAML",
    )


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def amount(text: str) -> float:
    """Read a finite number above 0."""
    number = float(text)
    if not 0 < number < math.inf:  # nan is neither
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return number
