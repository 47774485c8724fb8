"""A comparison as tables of text, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLUMNS = {
    "eval_sliding.val_bpb": "sliding",
    "train.val_bpb": "trained",
    "train.steps": "steps",
    "package.bytes_total": "bytes",
}
NONE = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """Headings (of one line or two) and rows; `figures` tells columns of numbers from text."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    figures: bool = True


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the list of groups, their scores, and the verdicts where there is a reference."""
    groups, score = result["groups"], result["score"]
    listed = [
        (str(i), group["label"], ", ".join(group["experiments"]))
        for i, group in enumerate(groups, start=1)
    ]
    others = {metric: name for metric, name in COLUMNS.items() if metric != score}
    rows = [
        (
            str(i),
            str(group["metrics"][score]["n"]),
            figure(group["metrics"][score]),
            *(_column(metric, group["metrics"].get(metric)) for metric in others),
        )
        for i, group in enumerate(groups, start=1)
    ]
    made = [
        Table("", ("group", "parameters", "experiments"), listed, figures=False),
        Table("", ("group", "n", score, *others.values()), rows),
    ]
    if result["against"] is not None:
        made.append(_verdicts(result))
    return [*made, *([] if result["paired"] is None else [_pairs(result["paired"])])]


def _pairs(pairs: Sequence[Mapping[str, Any] | None]) -> Table:
    rows = [
        (
            str(i),
            str(p["n"]),
            interval(p["mean"], p["high"], ".5f"),
            written(p["p"], "{:.2g}"),
            p["replicates"],
        )
        for i, p in enumerate(pairs, start=1)
        if p is not None
    ]
    headings = ("group", "pairs", "BPB", "p", "replicates")
    return Table("minus group 1, seed by seed, ± 95 %; p is two-sided", headings, rows)


def interval(mean: float, high: float | None, form: str) -> str:
    """Return a mean difference, ± half of its 95 % interval if it has one, whose end is `high`."""
    reach = "" if high is None else f" ± {high - mean:{form}}"
    return f"{mean:+{form}}{reach}"


def written(value: float | None, form: str) -> str:
    """Return a number as `form.format` writes it, NONE where there is none."""
    return NONE if value is None else form.format(value)


def _verdicts(result: Mapping[str, Any]) -> Table:
    reference = result["against"]
    known = f"n {reference['n']}" if reference["n"] else "its single scores are not known"
    name = reference_name(reference)
    title = f"against {name}: {figure(reference)}, {known}; 5 mnats: 0.005 nats per token better"
    headings = ("group", "BPB", "nats per\ntoken", "t", "p", "p of\n5 mnats")
    rules = ("5 mnats\np < 0.01", "better\np < 0.25")
    rows = [
        (str(i), *_verdict(group["verdict"]))
        for i, group in enumerate(result["groups"], start=1)
        if group["verdict"] is not None
    ]
    return Table(title, (*headings, *rules), rows)


def reference_name(reference: Mapping[str, Any]) -> str:
    """Return a record with its pull request of openai/parameter-golf, or that it is a group."""
    if reference["kind"] == "record":
        return f"{reference['label']} (pg#{reference['pull_request']})"
    return "group 1"


def _verdict(verdict: Mapping[str, Any]) -> Iterator[str]:
    yield f"{verdict['difference_bpb']:+.5f}"
    yield f"{verdict['difference_nats']:+.5f}"
    better, by_margin = verdict["better"], verdict["by_margin"]
    yield f"{better['t']:.2f}" if better else NONE
    yield from (f"{test['p']:.2g}" if test else NONE for test in (better, by_margin))
    for rule in ("record", "progress"):
        yield _rule(verdict[rule], verdict[f"seeds_for_{rule}"])


def _rule(kept: bool, seeds: int | None) -> str:
    if kept or seeds is None:
        return "yes" if kept else "no"
    return f"+{seeds} seed{'s' if seeds > 1 else ''}"


def figure(score: Mapping[str, Any]) -> str:
    """Return a score's mean and standard deviation."""
    deviation = "" if score["deviation"] is None else f" ± {score['deviation']:.5f}"
    return f"{score['mean']:.5f}{deviation}"


def _column(metric: str, values: Mapping[str, Any] | None) -> str:
    """Return a mean: a score with five decimals, a count without."""
    if values is None:
        return NONE
    return f"{values['mean']:,.{5 if metric.endswith('bpb') else 0}f}"


def notes(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what pairs can tell apart, each flag, and each run that was left out."""
    if result["power"] is not None:
        yield result["power"]["says"]
    for i, group in enumerate(result["groups"], start=1):
        yield from (f"group {i}: {flag}" for flag in group["flags"])
    for name, reason in result["left_out"].items():
        yield f"left out: {name}: {reason}"


def markdown(result: Mapping[str, Any]) -> str:
    """Return the comparison as Markdown, with every numeric metric of every group at the end."""
    parts = [markdown_table(table) for table in tables(result)]
    parts += ["\n".join(f"- {note}" for note in notes(result))]
    names = sorted({name for group in result["groups"] for name in group["metrics"]})
    headings = ("metric", *(f"group {i + 1}" for i in range(len(result["groups"]))))
    rows = [(n, *(_full(group["metrics"].get(n)) for group in result["groups"])) for n in names]
    parts.append(markdown_table(Table("every metric", headings, rows)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _full(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return NONE
    text = f"{values['mean']:.8g}"
    return text if values["deviation"] is None else f"{text} ± {values['deviation']:.3g}"


def print_tables(made: Iterable[Table], notes: Iterable[str]) -> None:
    """Print tables to the terminal, then the notes."""
    from rich import table as rich_table
    from rich.box import SIMPLE_HEAD

    from paramgolf.terminal import Console

    console = Console()
    for content in made:
        if content.title:
            console.print(content.title)
        table = rich_table.Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for i, heading in enumerate(content.headings):
            figures = content.figures and i > 0
            table.add_column(heading, justify="right" if figures else "left", no_wrap=figures)
        for row in content.rows:
            table.add_row(*row)
        console.print(table)
    for note in notes:
        console.print(f"- {note}")


def markdown_table(table: Table) -> str:
    """Return a table in Markdown."""
    rule = "---:" if table.figures else "---"
    lines = [table.headings, ("---", *(rule for _ in table.headings[1:])), *table.rows]
    plain = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in lines)
    rows = (f"| {' | '.join(row)} |" for row in plain)
    return "\n".join([*([f"{table.title}\n"] if table.title else []), *rows])
