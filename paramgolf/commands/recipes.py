"""List the recipes: what each is, its published score, sizes and speeds beside ours.

Published scores are their authors', bits per byte on FineWeb. Ours are of another text, and in a
table of their own: those of benchmarks/results/recipes.md, short trainings that were then packed.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.show import Table, markdown_table, print_tables
from paramgolf.files import read_json
from paramgolf.model.shapes import count
from paramgolf.recipes import (
    RECIPES,
    Difference,
    check,
    compose,
    describe,
    differences,
    names,
    read_records,
)

EXAMPLE = """example:
  paramgolf recipes
  paramgolf recipes --frontier
  paramgolf recipes --differences"""
MEASURED = RECIPES.parent / "benchmarks/results/recipes.json"
PREFIX = re.compile(r"^PR \d+, [\d.]+: ")  # other columns say it
NONE = "-"
SCORES = "FineWeb: the published score, bits per byte of the contest's text."
COSTS = (
    "Published, and ours beside it: parameters, bytes of code and weights (*: too many), "
    "thousands of tokens per second that each GPU trains on."
)
OURS = (
    "Ours, packed: bits per byte of that text. They are no scores to hold against those of FineWeb."
)
FRONTIER = (
    "Records that were each better than all before them, in the order of their pull requests; p: "
    "Welch, one-sided, of single scores (*: as published; -: single scores are not known)."
)
AUDITED = {True: "yes", False: "no", None: "unknown"}
HINT = "paramgolf estimate NAME: what one costs; paramgolf use NAME: write it to params.yaml"
MARKDOWN = ("recipes", "published", "ours", "why", "restored by", "measured effect")
Row = tuple[str, ...]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--frontier",
        action="store_true",
        help="print which records were each better than all before them, and by what p",
    )
    parser.add_argument(
        "--all", action="store_true", help="with --frontier: records that nobody audited, too"
    )
    instead.add_argument(
        "--differences",
        action="store_true",
        help="print what recipes do otherwise than the published code, in Markdown",
    )


def run(options: argparse.Namespace) -> int:
    """Print the tables, or what the options ask for instead."""
    if options.all and not options.frontier:
        fix = "paramgolf recipes --frontier --all"
        raise ParamGolfError("--all goes with --frontier alone", fix=fix)
    if options.differences:
        print(markdown(differences()))
    elif options.frontier:
        print_frontier(audited=not options.all)
    else:
        print_recipes()
    return 0


def print_recipes() -> None:
    """Print the tables: our own recipes, then the published systems by number."""
    records, measured = read_records(), read_measured(MEASURED)
    ordered = sorted(names(RECIPES), key=lambda name: (name.startswith("pr"), name))
    what = [(n, _score(records.get(n)), PREFIX.sub("", describe(n, RECIPES))) for n in ordered]
    headings = ("recipe", "FineWeb", "what it is")
    tables = [Table(SCORES, headings, what, figures=False)]
    costs = [_costs(name, records[name], measured.get(name)) for name in ordered if name in records]
    shown = [measured[name] for name in ordered if name in measured]
    title = " ".join([COSTS, *_settings(shown)])
    tables.append(
        Table(title, ("recipe", "parameters", "ours", "bytes", "ours", "k/s", "ours"), costs)
    )
    if measured:
        packed = [_packed(name, measured[name]["figures"]) for name in ordered if name in measured]
        tables.append(Table(OURS, ("recipe", "packed", "bytes"), packed))
    print_tables(tables, [])
    print(HINT)


def print_frontier(*, audited: bool) -> None:
    """Print the steps of the contest's frontier."""
    from paramgolf.experiments.frontier import frontier  # imports scipy

    steps = frontier(read_records(), audited=audited)
    rows = [
        (
            step.name,
            step.record.get("date", NONE),
            f"{step.scores.mean:.5f}",
            str(step.scores.n or NONE),
            NONE if step.improvement is None else f"{step.improvement:.5f}",
            NONE if step.p is None else f"{step.p:.2g}{'*' if step.p_from == 'published' else ' '}",
            AUDITED[step.record["audited"]],
        )
        for step in steps
    ]
    headings = ("recipe", "date", "BPB", "seeds", "better by", "p", "audited")
    print_tables([Table(FRONTIER, headings, rows)], [])


def read_measured(path: Path) -> dict[str, Any]:
    """Return what the benchmark has trained, packed and scored alike, by name.

    Recipes, and runs of older code with names of their own.
    """
    runs = read_json(path)["runs"]["recipes"] if path.is_file() else {}
    return {name: run for name, run in runs.items() if "lost" in run["figures"]}


def _settings(runs: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Yield on what the benchmark trained and where, a sentence for each setting."""
    found = [(run["figures"]["tokens"], run["device"]) for run in runs]
    for tokens, device in dict.fromkeys(found):
        yield f"Ours are of {tokens / 1e6:,.0f} M tokens of another text on one {device}."


def _score(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return NONE
    mean = record["mean"] if "mean" in record else statistics.fmean(record["seeds"].values())
    return f"{mean:.4f}"


def _costs(name: str, record: Mapping[str, Any], run: Mapping[str, Any] | None) -> Row:
    params = check(compose(name, RECIPES), where=RECIPES / f"{name}.yaml")
    training, limit = record["training"], params.package.limit_bytes
    speed = training["steps"] * training["batch_tokens"] / training["seconds"] / training["gpus"]
    return (
        name,
        f"{record['parameters']:,}",
        f"{count(params.model, params.tokenizer.vocab_size):,}",
        _bytes(record["artifact_bytes"], limit),
        _bytes(run["figures"]["bytes_total"], limit) if run else NONE,
        f"{speed / 1e3:,.0f}",
        f"{run['figures']['tokens_per_second'] / 1e3:,.0f}" if run else NONE,
    )


def _packed(name: str, figures: Mapping[str, Any]) -> Row:
    total = figures["bytes_total"]
    return (
        name,
        f"{figures['val_bpb_packed']:.4f}",
        _bytes(total, total + figures["headroom_bytes"]),
    )


def _bytes(total: int, limit: int) -> str:
    return f"{total:,}{'*' if total > limit else ' '}"


def markdown(found: Sequence[Difference]) -> str:
    """Return differences as a table in Markdown, the one of docs/recipes.md."""
    every = {recipe for entry in found for recipe in entry.recipes}
    rows = []
    for entry in found:
        keys = "<br>".join(f"`{key}: {_plain(value)}`" for key, value in entry.restore.items())
        recipes = ", ".join(entry.recipes) if {*entry.recipes} != every else "all"
        rows.append((recipes, entry.theirs, entry.ours, entry.why, keys or NONE, entry.effect))
    return markdown_table(Table("", MARKDOWN, rows, figures=False))


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
