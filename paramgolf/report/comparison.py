"""Several runs side by side, as one offline HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramgolf.experiments.group import APART
from paramgolf.recipes import as_text
from paramgolf.report import byte_map, pictures
from paramgolf.report.drawing import Picture, line_class
from paramgolf.report.html import template
from paramgolf.report.runs import ShownRun
from paramgolf.report.scores import EVALUATORS, SCORES, Score, chain, notes

FIGURES = (
    ("Adapted", "eval_ttt.val_bpb", "{:.4f}"),
    ("Sliding", "eval_sliding.val_bpb", "{:.4f}"),
    ("Packed", "eval_sliding.val_bpb_plain", "{:.4f}"),
    ("Trained", "train.val_bpb", "{:.4f}"),
    ("bytes", "package.bytes_total", "{:,}"),
    ("steps", "train.steps", "{:,}"),
    ("seconds of training", "train.train_seconds", "{:,.0f}"),
)
BEST = 4  # of the first so many figures the lowest is marked
COMPARED = {
    "eval_ttt.bytes_scored": "the adapted scores are of different texts",
    "eval_sliding.bytes_scored": "the sliding scores are of different texts",
    "train.device": "the runs were trained on different devices",
    "train.world_size": "the runs were trained by different numbers of processes",
    "train.torch": "the runs were trained with different versions of torch",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """A run as the page shows it.

    Attributes:
        name: of the run.
        line: the class of its curve in the style sheet.
        cells: FIGURES as text, and whether each is the best of all runs.
        scores: step by step.
        parts: bytes by family, each with its per cent of the longest bar.
        total: their sum; None where none are known.
    """

    name: str
    line: str
    cells: Sequence[tuple[str, bool]]
    scores: Sequence[Score]
    parts: Sequence[tuple[str, int, float]]
    total: int | None


def render_comparison(runs: Sequence[ShownRun], left_out: Mapping[str, str]) -> str:
    """Return the page; a run may lack metrics, its log or its ledger.

    The same runs give the same text.
    """
    rows = shown(runs)
    limits = {run.number("package.limit_bytes") for run in runs} - {None}
    return template("compare.html").render(
        warnings=warnings(runs, left_out),
        figures=FIGURES,
        runs=rows,
        names=[run.name for run in runs],
        differences=differences(runs),
        changes=_changes(rows),
        curves=_curves(runs),
        family_rows=family_rows(rows),
        limits=sorted(limits),
        metrics=all_metrics(runs),
    )


def shown(runs: Sequence[ShownRun]) -> list[Shown]:
    """Return each run as the page shows it."""
    lowest = _lowest(runs)
    sizes = [dict(_sizes(run)) for run in runs]
    longest = max((sum(parts.values()) for parts in sizes), default=0) or 1
    return [
        Shown(
            run.name,
            line_class(line),
            [_cell(run, key, form, lowest.get(key)) for _, key, form in FIGURES],
            _scores(run),
            [(family, size, 100 * size / longest) for family, size in parts.items()],
            sum(parts.values()) if parts else None,
        )
        for line, (run, parts) in enumerate(zip(runs, sizes, strict=True))
    ]


def _lowest(runs: Sequence[ShownRun]) -> dict[str, float]:
    """Return the best of each of the first FIGURES, where runs differ."""
    lowest: dict[str, float] = {}
    for _, key, _ in FIGURES[:BEST]:
        values = [v for run in runs if (v := run.number(key)) is not None]
        if len(set(values)) > 1:
            lowest[key] = min(values)
    return lowest


def _cell(run: ShownRun, key: str, form: str, best: float | None) -> tuple[str, bool]:
    value = run.number(key)
    return ("–", False) if value is None else (form.format(value), value == best)


def _scores(run: ShownRun) -> list[Score]:
    values = [run.number(f"{stage}.{key}") for _, stage, key in SCORES]
    return chain(values, notes(run.params.get))


def _changes(rows: Sequence[Shown]) -> Picture | None:
    """Return the picture of all runs' scores, where any has one."""
    if all(score.value is None for row in rows for score in row.scores):
        return None
    return pictures.changes([(row.name, row.scores) for row in rows])


def _curves(runs: Sequence[ShownRun]) -> Picture | None:
    """Return the curves of the runs whose logs are at hand."""
    logs = {line: (run.name, run.log) for line, run in enumerate(runs) if run.log is not None}
    return pictures.overlaid(logs) if logs else None


def _sizes(run: ShownRun) -> Iterator[tuple[str, int]]:
    """Yield a run's bytes by family; weights and code where its ledger is not at hand."""
    if run.parts is not None:
        yield from byte_map.by_family(byte_map.leaves(run.parts)).items()
        return
    for family in (byte_map.OTHER, "code"):
        if (size := run.number(f"package.bytes_{family}")) is not None:
            yield family, int(size)


def family_rows(rows: Sequence[Shown]) -> list[tuple[str, list[int | None]]]:
    """Return the bytes of each family in each run."""
    sizes = [{family: size for family, size, _ in row.parts} for row in rows]
    order = [*byte_map.FAMILIES, byte_map.OTHER]
    names = sorted({family for each in sizes for family in each}, key=order.index)
    return [(family, [each.get(family) for each in sizes]) for family in names]


def differences(runs: Sequence[ShownRun]) -> list[tuple[str, ...]]:
    """Return each parameter that is not the same in all runs, with its values."""
    keys = dict.fromkeys(key for run in runs for key in run.params if not key.startswith(APART))
    rows = [(key, *(as_text(run.params.get(key, "(absent)")) for run in runs)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def all_metrics(runs: Sequence[ShownRun]) -> list[tuple[str, ...]]:
    """Return every metric but lists, with each run's value as text."""
    keys = sorted({key for run in runs for key in run.metrics})
    plain = [key for key in keys if not any(isinstance(r.metrics.get(key), list) for r in runs)]
    return [(key, *(_figure(run.metrics.get(key)) for run in runs)) for key in plain]


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return as_text(value)


def warnings(runs: Sequence[ShownRun], left_out: Mapping[str, str]) -> list[str]:
    """Return what makes the runs hard to compare, and what is missing."""
    texts = [f"{text}." for key, text in COMPARED.items() if _differ(runs, key)]
    changed = {key for key, *_ in differences(runs)}
    if any(key.startswith("tokenizer.") for key in changed):
        texts.append("the tokenizers differ: nats per token do not compare, bits per byte do.")
    texts += _scoring_warnings(runs)
    if missing := [run.name for run in runs if run.log is None]:
        names = ", ".join(missing)
        reason = "DVC's cache and remote lack it, or it is not whole, or another run's"
        texts.append(f"no training log at hand of {names}: {reason}.")
    texts += [
        f"the same training, so that their curves lie on one another: {', '.join(names)}."
        for names in _shared(runs)
    ]
    texts += [text for run in runs for text in _foreign_warnings(run)]
    texts += [f"left out: {name}: {reason}." for name, reason in left_out.items()]
    return texts


def _scoring_warnings(runs: Sequence[ShownRun]) -> Iterator[str]:
    """Yield how the evaluations of the runs differ, and which of them scored only a part."""
    for i, stage in enumerate(EVALUATORS, start=2):  # the notes before are of training and packing
        ways = dict.fromkeys(notes(run.params.get)[i] for run in runs)
        if len(ways) > 1:
            yield f"{stage} did not score alike: {' / '.join(ways)}."
        if parts := [run.name for run in runs if _scored_a_part(run, stage)]:
            yield f"{stage} scored a part of the text, training all of it: {', '.join(parts)}."


def _foreign_warnings(run: ShownRun) -> Iterator[str]:
    """Yield which stages' metrics are another run's and so are not shown; one text per reason."""
    for reason in dict.fromkeys(run.foreign.values()):
        stages = ", ".join(stage for stage, why in run.foreign.items() if why == reason)
        yield f"not shown of {run.name}, as made with {reason}: {stages}."


def _scored_a_part(run: ShownRun, stage: str) -> bool:
    """Tell whether an evaluation left text out, as with `max_tokens`: steps then do not compare."""
    scored = run.number(f"{stage}.bytes_scored")
    whole = run.number("audit.bytes_val_counted")
    return scored is not None and whole is not None and scored != whole


def _shared(runs: Sequence[ShownRun]) -> list[tuple[str, ...]]:
    """Return the names of runs whose training logs are the same, those that have such a twin."""
    logged = [run for run in runs if run.log is not None]
    groups = (tuple(other.name for other in logged if other.log == run.log) for run in logged)
    return [*dict.fromkeys(names for names in groups if len(names) > 1)]


def _differ(runs: Sequence[ShownRun], metric: str) -> bool:
    return len({as_text(v) for run in runs if (v := run.metrics.get(metric)) is not None}) > 1
