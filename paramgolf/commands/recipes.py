"""List the recipes: parameters of the network, published score of the system, and what it is.

Scores are their authors', bits per byte on FineWeb; docs/recipes.md says how ours differ.
"""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path
from typing import Any, Literal

from paramgolf.model.shapes import count
from paramgolf.params import read_yaml
from paramgolf.recipes import RECIPES, check, compose, describe, names

EXAMPLE = """example:
  paramgolf recipes"""
HEADINGS = ("recipe", "parameters", "published", "what it is")
PREFIX = re.compile(r"^PR \d+, [\d.]+: ")  # other columns say it
HINT = "paramgolf estimate NAME: what one costs; paramgolf use NAME: write it to params.yaml"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options: there are none."""


def run(options: argparse.Namespace) -> int:
    """Print the table: our own recipes, then the published systems by number."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    records = read_yaml(RECIPES / "records.yaml")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column, heading in enumerate(HEADINGS):
        wraps = column == len(HEADINGS) - 1
        justify: Literal["right", "left"] = "right" if column in (1, 2) else "left"
        table.add_column(heading, justify=justify, no_wrap=not wraps)
    for name in sorted(names(RECIPES), key=lambda name: (name.startswith("pr"), name)):
        table.add_row(*_row(name, RECIPES, records))
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(HINT)
    return 0


def _row(name: str, folder: Path, records: dict[str, Any]) -> tuple[str, str, str, str]:
    params = check(compose(name, folder), where=folder / f"{name}.yaml")
    parameters = count(params.model, params.tokenizer.vocab_size)
    line = PREFIX.sub("", describe(name, folder))
    return name, f"{parameters:,}", _published(records.get(name)), line


def _published(record: dict[str, Any] | None) -> str:
    if record is None:
        return "-"
    mean = record["mean"] if "mean" in record else statistics.fmean(record["seeds"].values())
    return f"{mean:.4f}"
