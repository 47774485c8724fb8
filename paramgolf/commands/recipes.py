"""List the recipes: parameters of the network, published score of the system, ours, what it is.

Published scores are their authors', bits per byte on FineWeb; docs/recipes.md says how ours differ.
Ours are those of benchmarks/results/recipes.md: short trainings on another text, then packed.
"""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path
from typing import Any, Literal

from paramgolf.files import read_json
from paramgolf.model.shapes import count
from paramgolf.params import read_yaml
from paramgolf.recipes import RECIPES, check, compose, describe, names

EXAMPLE = """example:
  paramgolf recipes"""
HEADINGS = ("recipe", "parameters", "published", "ours", "what it is")
MEASURED = RECIPES.parent / "benchmarks/results/recipes.json"
PREFIX = re.compile(r"^PR \d+, [\d.]+: ")  # other columns say it
OURS = "ours: packed after {tokens:,.0f} M tokens of another text on {device}; not FineWeb's"
HINT = "paramgolf estimate NAME: what one costs; paramgolf use NAME: write it to params.yaml"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options: there are none."""


def run(options: argparse.Namespace) -> int:
    """Print the table: our own recipes, then the published systems by number."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    records, measured = read_yaml(RECIPES / "records.yaml"), read_measured(MEASURED)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column, heading in enumerate(HEADINGS):
        wraps = column == len(HEADINGS) - 1
        justify: Literal["right", "left"] = "right" if column in (1, 2, 3) else "left"
        table.add_column(heading, justify=justify, no_wrap=not wraps)
    for name in sorted(names(RECIPES), key=lambda name: (name.startswith("pr"), name)):
        table.add_row(*_row(name, RECIPES, records, measured))
    console = Console(highlight=False, markup=False)
    console.print(table)
    settings = [(run["figures"]["tokens"] / 1e6, run["device"]) for run in measured.values()]
    for tokens, device in dict.fromkeys(settings):
        console.print(OURS.format(tokens=tokens, device=device))
    console.print(HINT)
    return 0


def read_measured(path: Path) -> dict[str, Any]:
    """Return the recipes that the benchmark has trained, packed and scored alike, by name."""
    runs = read_json(path)["runs"]["recipes"] if path.is_file() else {}
    return {name: run for name, run in runs.items() if "lost" in run["figures"]}


def _row(name: str, folder: Path, records: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    params = check(compose(name, folder), where=folder / f"{name}.yaml")
    parameters = count(params.model, params.tokenizer.vocab_size)
    line = PREFIX.sub("", describe(name, folder))
    ours = f"{measured[name]['figures']['val_bpb_packed']:.4f}" if name in measured else "-"
    return [name, f"{parameters:,}", _published(records.get(name)), ours, line]


def _published(record: dict[str, Any] | None) -> str:
    if record is None:
        return "-"
    mean = record["mean"] if "mean" in record else statistics.fmean(record["seeds"].values())
    return f"{mean:.4f}"
