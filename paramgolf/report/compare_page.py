"""The comparison of several runs as one offline HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from paramgolf.files import write_text
from paramgolf.report import compare_views as views
from paramgolf.report.html import template
from paramgolf.report.runs import Run


def write_comparison(runs: Sequence[Run], left_out: Mapping[str, str], path: Path) -> None:
    """Write the page; the same runs give the same bytes."""
    write_text(path, render_comparison(runs, left_out))


def render_comparison(runs: Sequence[Run], left_out: Mapping[str, str]) -> str:
    """Return the page; a run may lack metrics, its log or its ledger."""
    falls, score_labels = views.falls(runs)
    stacks = views.stacks(runs)
    limits = {run.metrics.get("package.limit_bytes") for run in runs} - {None}
    return template("compare.html").render(
        warnings=views.warnings(runs, left_out),
        figures=views.FIGURES,
        summary=views.summary(runs),
        differences=views.differences(runs),
        falls=falls,
        score_labels=score_labels,
        plots=views.plots(runs),
        stacks=stacks,
        family_rows=views.family_rows(stacks),
        limits=sorted(limits),
        metrics=views.all_metrics(runs),
    )
