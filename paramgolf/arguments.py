"""Numbers of a command line, for argparse: one that is out of range is told before work begins."""

from __future__ import annotations

import argparse
import math


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
