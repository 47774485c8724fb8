"""What a plan of the laboratory found, as one offline HTML page."""

from __future__ import annotations

from pathlib import Path

from paramgolf.experiments.lab.show import budget_of, tables
from paramgolf.experiments.lab.summary import Summary
from paramgolf.files import write_text
from paramgolf.report import pictures
from paramgolf.report.html import template


def write_lab_page(summary: Summary, path: Path) -> None:
    """Write the page; the same figures give the same bytes."""
    write_text(path, render_lab_page(summary))


def render_lab_page(summary: Summary) -> str:
    """Return the page; variants may lack figures."""
    found = [
        (one.name, one.differences[summary.score])
        for one in summary.variants[1:]
        if summary.score in one.differences
    ]
    return template("lab.html").render(
        plan=summary.plan,
        variants=summary.plan["variants"],
        budget=budget_of(summary),
        power=summary.power.sentence(),
        warnings=[*summary.warnings()],
        differences=pictures.paired_differences(found, summary.score) if found else None,
        tables=tables(summary),
    )
