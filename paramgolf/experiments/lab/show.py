"""A summary as tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from paramgolf.estimate.devices import GIB
from paramgolf.experiments.lab.screening import Effect, Screening
from paramgolf.experiments.lab.summary import SCORES, Summary, VariantResult
from paramgolf.experiments.paired import Paired
from paramgolf.experiments.show import NONE, Table, interval, markdown_table, written

# heading: figure, what is written as 1, and how
COSTS = {
    "M tokens": ("tokens", 1e6, "{:,.2f}"),
    "M tokens/s": ("tokens_per_second", 1e6, "{:.3f}"),
    "passes": ("passes", 1, "{:.2f}"),
    "bytes": ("bytes_total", 1, "{:,.0f}"),
    "GiB": ("peak_memory_bytes", GIB, "{:.1f}"),
    "kJ": ("train_joules", 1e3, "{:,.0f}"),
    "seconds": ("wall_seconds", 1, "{:,.0f}"),
}


def tables(summary: Summary) -> list[Table]:
    """Return a row a variant in each of: scores, differences from the first variant, and costs.

    Of a screening there is a row a factor, its effects, in the place of differences.
    """
    scores = [s for s in SCORES if any(one.mean(s) is not None for one in summary.variants)]
    scored = [
        (one.name, _count(one), *(_mean_score(one, score) for score in scores))
        for one in summary.variants
    ]
    if (found := summary.screening) is not None:
        scored = [(*row, found.numbers(row[0])) for row in scored]
        headings = "run", "seeds", *scores, "factors that are on"
        runs = Table("bits per byte", headings, scored)
        return [runs, _effects(found, summary.score), _costs(summary)]
    first, *others = summary.variants
    made = [Table("bits per byte", ("variant", "runs", *scores), scored)]
    if others:
        rows = [row for one in others for row in _differences(one, summary.score)]
        headings = "variant", "score", "difference", "seeds", "p", "predicted"
        made.append(Table(f"minus {first.name}, seed by seed, ± 95 %", headings, rows))
    return [*made, _costs(summary)]


def _costs(summary: Summary) -> Table:
    shown = {
        heading: how
        for heading, how in COSTS.items()
        if any(one.mean(how[0]) is not None for one in summary.variants)
    }
    rows = [(one.name, *(_cost(one, *how) for how in shown.values())) for one in summary.variants]
    return Table("costs: means; GiB, kJ and tokens are of training", ("variant", *shown), rows)


def _cost(one: VariantResult, figure: str, unit: float, form: str) -> str:
    mean = one.mean(figure)
    return written(None if mean is None else mean / unit, form)


def _effects(found: Screening, score: str) -> Table:
    rows = []
    for number, factor in enumerate(found.factors, start=1):
        name = factor["name"]
        effects = (
            _interval(found.score.effects.get(name), ".4f"),
            written(factor["predicted"], "{:+.4f}"),
            _interval(found.speed.get(name), ".2f"),
        )
        rows.append((f"{number} {name}", *effects))
    headings = "factor", score, "predicted", "speed, %"
    return Table("effects: runs with a factor minus runs without it, ± 95 %", headings, rows)


def _interval(found: Paired | Effect | None, form: str) -> str:
    return NONE if found is None else interval(found.mean, found.high, form)


def _differences(one: VariantResult, judged: str) -> Iterator[tuple[str, ...]]:
    """Yield a row for each score of which there are pairs: their mean, and ± half its interval.

    What was predicted stands beside the score that is `judged`, the furthest of all variants.
    """
    name, predicted = one.name, written(one.predicted, "{:+.4f}")
    for score, found in one.differences.items():
        difference, p = _interval(found, ".4f"), written(found.p, "{:.2g}")
        yield name, score, difference, str(found.n), p, predicted if score == judged else ""
        name = ""
    if judged not in one.differences:
        yield name, NONE, NONE, "0", NONE, predicted


def _mean_score(one: VariantResult, score: str) -> str:
    """Return the mean of a score, and of how many runs where the others have not come so far."""
    mean = written(one.mean(score), "{:.4f}")
    have = sum(score in figures for figures in one.figures.values())
    return mean if have in (0, _done(one)) else f"{mean} ({have})"


def _done(one: VariantResult) -> int:
    """Return how many runs have any score."""
    return sum(any(score in figures for score in SCORES) for figures in one.figures.values())


def _count(one: VariantResult) -> str:
    """Return how many runs have a score, and of how many where some have none."""
    done = _done(one)
    return str(done) if done == len(one.figures) else f"{done}/{len(one.figures)}"


def notes(summary: Summary) -> Iterator[str]:
    """Yield what the tables are of, what they can tell apart, and what to beware of."""
    yield f"each training has {budget_of(summary)}"
    yield f"{summary.score}: {summary.power.sentence()}"
    if summary.screening is not None:
        yield from summary.screening.notes()
    yield from summary.warnings()


def budget_of(summary: Summary) -> str:
    """Return what each training has: seconds or tokens, and GPUs."""
    plan = summary.plan
    budget = f"{plan['seconds']:g} s" if plan["seconds"] else f"{plan['tokens']:,} tokens"
    if {device for one in summary.variants for device in one.devices} == {"cpu"}:
        return f"{budget} on a CPU"
    gpus = "a GPU" if plan["gpus"] == 1 else f"{plan['gpus']} GPUs"
    return f"{budget} on {gpus}"


def markdown(summary: Summary) -> str:
    """Return the tables in Markdown, with the reason of each variant or factor below them."""
    parts = [f"# {summary.plan['name']}", *map(markdown_table, tables(summary))]
    parts.append("\n".join(f"- {note}" for note in notes(summary)))
    tried = [(one.name, one.reason) for one in summary.variants]
    if summary.screening is not None:
        tried = [(one["name"], one["reason"]) for one in summary.screening.factors]
    reasons = [f"- {name}: {reason}" for name, reason in tried if reason]
    return "\n\n".join([*parts, *(["\n".join(reasons)] if reasons else [])]) + "\n"
