"""List the recipes: parameters of the network, published score of the system, and what it is."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from paramgolf.model.shapes import count
from paramgolf.params import read_yaml
from paramgolf.recipes import RECIPES, check, compose, describe, names

EXAMPLE = """example:
  paramgolf recipes"""
HEADINGS = ("recipe", "parameters", "published BPB", "what it is")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options: there are none."""


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    records = read_yaml(RECIPES / "records.yaml")
    rows = [HEADINGS, *(_row(name, RECIPES, records) for name in names(RECIPES))]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, parameters, score, line in rows:
        print(f"{name:<{widths[0]}}  {parameters:>{widths[1]}}  {score:>{widths[2]}}  {line}")
    return 0


def _row(name: str, folder: Path, records: dict[str, Any]) -> tuple[str, str, str, str]:
    params = check(compose(name, folder), where=folder / f"{name}.yaml")
    parameters = count(params.model, params.tokenizer.vocab_size)
    return name, f"{parameters:,}", _published(records.get(name)), describe(name, folder)


def _published(record: dict[str, Any] | None) -> str:
    if record is None:
        return "-"
    mean = record["mean"] if "mean" in record else statistics.fmean(record["seeds"].values())
    return f"{mean:.4f}"
