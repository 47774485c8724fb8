"""A comparison as tables of text, for the terminal and for Markdown, and as a picture."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.files import write_bytes

COLUMNS = {
    "eval_sliding.val_bpb": "sliding",
    "train.val_bpb": "trained",
    "train.steps": "steps",
    "package.bytes_total": "bytes",
}
INK, ACCENT = "#1c2126", "#1f6f8b"


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
    return [*made, *([] if result["against"] is None else [_verdicts(result)])]


def _verdicts(result: Mapping[str, Any]) -> Table:
    reference = result["against"]
    known = f"n {reference['n']}" if reference["n"] else "its single scores are not known"
    name = _reference_name(reference)
    title = f"against {name}: {figure(reference)}, {known}; 5 mnats: 0.005 nats a token better"
    headings = ("group", "BPB", "nats\na token", "t", "df", "p", "p of\n5 mnats")
    rules = ("5 mnats\np < 0.01", "better\np < 0.25")
    rows = [
        (str(i), *_verdict(group["verdict"]))
        for i, group in enumerate(result["groups"], start=1)
        if group["verdict"] is not None
    ]
    return Table(title, (*headings, *rules), rows)


def _reference_name(reference: Mapping[str, Any]) -> str:
    if reference["kind"] == "record":
        return f"{reference['label']} (#{reference['pull_request']})"
    return "group 1"


def _verdict(verdict: Mapping[str, Any]) -> Iterator[str]:
    yield f"{verdict['difference_bpb']:+.5f}"
    yield f"{verdict['difference_nats']:+.5f}"
    better, by_margin = verdict["better"], verdict["by_margin"]
    yield from (f"{better[key]:.2f}" if better else "-" for key in ("t", "degrees"))
    yield from (f"{test['p']:.2g}" if test else "-" for test in (better, by_margin))
    for rule in ("record", "progress"):
        yield _rule(verdict[rule], verdict[f"seeds_for_{rule}"])


def _rule(kept: bool, seeds: int | None) -> str:
    if kept or seeds is None:
        return "yes" if kept else "no"
    return f"+{seeds} seed{'s' if seeds > 1 else ''}"


def figure(found: Mapping[str, Any]) -> str:
    """Return a score's mean and standard deviation."""
    deviation = "" if found["deviation"] is None else f" ± {found['deviation']:.5f}"
    return f"{found['mean']:.5f}{deviation}"


def _column(metric: str, found: Mapping[str, Any] | None) -> str:
    """Return a mean: a score with five decimals, a count without."""
    if found is None:
        return "-"
    return f"{found['mean']:,.{5 if metric.endswith('bpb') else 0}f}"


def notes(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each flag and each run that was left out."""
    for i, group in enumerate(result["groups"], start=1):
        yield from (f"group {i}: {flag}" for flag in group["flags"])
    for name, reason in result["left_out"].items():
        yield f"left out: {name}: {reason}"


def markdown(result: Mapping[str, Any]) -> str:
    """Return the comparison as Markdown, with every numeric metric of every group at the end."""
    parts = [_markdown_table(table) for table in tables(result)]
    parts += ["\n".join(f"- {note}" for note in notes(result))]
    names = sorted({name for group in result["groups"] for name in group["metrics"]})
    headings = ("metric", *(f"group {i + 1}" for i in range(len(result["groups"]))))
    rows = [(n, *(_full(group["metrics"].get(n)) for group in result["groups"])) for n in names]
    parts.append(_markdown_table(Table("every metric", headings, rows)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _full(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    text = f"{found['mean']:.8g}"
    return text if found["deviation"] is None else f"{text} ± {found['deviation']:.3g}"


def _markdown_table(table: Table) -> str:
    rule = "---:" if table.figures else "---"
    lines = [table.headings, ("---", *(rule for _ in table.headings[1:])), *table.rows]
    plain = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in lines)
    rows = (f"| {' | '.join(row)} |" for row in plain)
    return "\n".join([*([f"{table.title}\n"] if table.title else []), *rows])


def write_picture(result: Mapping[str, Any], path: Path) -> None:
    """Draw each run as a dot, each group's mean as a bar; the same input gives the same bytes."""
    from matplotlib.figure import Figure  # half a second

    labels = [f"{group['label']} (n {len(group['scores'])})" for group in result["groups"]]
    drawing = Figure(figsize=(8, 1.2 + 0.5 * len(labels)), dpi=120, layout="constrained")
    axes = drawing.subplots()
    for place, group in enumerate(result["groups"]):
        values = group["scores"]
        axes.plot(values, [place] * len(values), "o", color=ACCENT, markersize=5, alpha=0.7)
        axes.plot(sum(values) / len(values), place, "|", color=INK, markersize=18)
    if result["against"] is not None:
        place = result["against"]["mean"]
        axes.axvline(place, color=INK, linewidth=0.8, linestyle="--")
        axes.text(place, -0.55, _reference_name(result["against"]), ha="center", fontsize=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel=result["score"], ylim=(len(labels) - 0.5, -0.5))
    axes.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    drawing.savefig(image, format="png", metadata={"Software": None})
    write_bytes(path, image.getvalue())
