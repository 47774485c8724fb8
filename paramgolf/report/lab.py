"""What a plan of the laboratory found, as one offline HTML page."""

from __future__ import annotations

from paramgolf.experiments.lab.screening import Effect
from paramgolf.experiments.lab.show import budget_of, tables
from paramgolf.experiments.lab.summary import Summary
from paramgolf.experiments.paired import Paired
from paramgolf.report import pictures
from paramgolf.report.html import template


def render_lab_page(summary: Summary) -> str:
    """Return the page; variants may lack figures. The same figures give the same text."""
    plan, screening = summary.plan, summary.screening
    found: list[tuple[str, Paired | Effect]] = [
        (one.name, one.differences[summary.score])
        for one in summary.variants[1:]
        if summary.score in one.differences
    ]
    if screening is not None:
        found = [*screening.score.effects.items()]
    return template("lab.html").render(
        plan=plan,
        tried=plan["variants"] if screening is None else plan["factors"],
        kind="variant" if screening is None else "factor",
        budget=budget_of(summary),
        told=[summary.power.sentence(), *(screening.notes() if screening else ())],
        warnings=[*summary.warnings()],
        differences=pictures.differences(found, summary.score) if found else None,
        tables=tables(summary),
    )
