"""What each part of the comparison of runs shows, computed from them and free of HTML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramgolf.report import byte_map
from paramgolf.report.charts import Axis
from paramgolf.report.curves import Plot, line_class, overlaid_losses, overlaid_validations
from paramgolf.report.inputs import Log
from paramgolf.report.runs import Run
from paramgolf.report.scores import EVALUATORS, SCORES, Score, chain, notes

APART = ("runtime.", "verify.")  # sections that change no result
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
class Row:
    """A run's figures as text, and which of them are the best of all runs; `line`: of its curve."""

    name: str
    line: str
    cells: Sequence[tuple[str, bool]]


@dataclass(frozen=True, slots=True)
class Fall:
    """A run's scores step by step; all runs share an axis."""

    name: str
    line: str
    rows: Sequence[Score]


@dataclass(frozen=True, slots=True)
class Stack:
    """A run's bytes by family, each with its per cent of the longest bar; and the sum."""

    name: str
    line: str
    parts: Sequence[tuple[str, int, float]]
    total: int | None


def summary(runs: Sequence[Run]) -> list[Row]:
    """Return FIGURES of each run."""
    lowest: dict[str, float] = {}
    for _, key, _ in FIGURES[:BEST]:
        values = [v for run in runs if (v := number(run, key)) is not None]
        if len(set(values)) > 1:
            lowest[key] = min(values)
    return [
        Row(
            run.name,
            line_class(line),
            [
                ("–", False)
                if (value := number(run, key)) is None
                else (form.format(value), value == lowest.get(key))
                for _, key, form in FIGURES
            ],
        )
        for line, run in enumerate(runs)
    ]


def number(run: Run, key: str) -> float | int | None:
    """Return a metric where the run has it as a number."""
    value = run.metrics.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def falls(runs: Sequence[Run]) -> tuple[list[Fall], list[tuple[float, str]]]:
    """Return every run's scores step by step, and the labels of their common axis.

    It is that of changes since a run's first score, so that runs far apart can be compared.
    """
    values = [[number(run, f"{stage}.{key}") for _, stage, key in SCORES] for run in runs]
    origins = [next((value for value in row if value is not None), None) for row in values]
    changes = [
        value - origin
        for row, origin in zip(values, origins, strict=True)
        for value in row
        if value is not None and origin is not None
    ]
    if not changes:
        return [], []
    axis = Axis.over(changes, ticks=4, zero=True)
    rows = zip(runs, values, origins, strict=True)
    return [
        Fall(run.name, line_class(line), chain(row, notes(run.params.get), axis, origin or 0.0))
        for line, (run, row, origin) in enumerate(rows)
    ], [(place, text.replace("-", "−")) for place, text in axis.labels()]


def plots(runs: Sequence[Run]) -> list[Plot]:
    """Return the charts of the runs whose logs are at hand."""
    logs: dict[int, tuple[str, Log]] = {
        line: (run.name, run.log) for line, run in enumerate(runs) if run.log is not None
    }
    if not logs:
        return []
    validations = overlaid_validations(logs)
    return [overlaid_losses(logs), *([] if validations is None else [validations])]


def stacks(runs: Sequence[Run]) -> list[Stack]:
    """Return each run's bytes by family; weights and code where its ledger is not at hand."""
    sizes = [dict(_sizes(run)) for run in runs]
    longest = max((sum(parts.values()) for parts in sizes), default=0) or 1
    return [
        Stack(
            run.name,
            line_class(line),
            [(family, size, 100 * size / longest) for family, size in parts.items()],
            sum(parts.values()) if parts else None,
        )
        for line, (run, parts) in enumerate(zip(runs, sizes, strict=True))
    ]


def _sizes(run: Run) -> Iterator[tuple[str, int]]:
    if run.package is not None:
        yield from byte_map.by_family(byte_map.leaves(run.package)).items()
        return
    for family in ("model", "code"):
        if (size := number(run, f"package.bytes_{family}")) is not None:
            yield family, int(size)


def family_rows(stacks: Sequence[Stack]) -> list[tuple[str, list[int | None]]]:
    """Return the bytes of each family in each run."""
    sizes = [{family: size for family, size, _ in stack.parts} for stack in stacks]
    order = [*byte_map.FAMILIES, "model"]
    names = sorted({family for found in sizes for family in found}, key=order.index)
    return [(family, [found.get(family) for found in sizes]) for family in names]


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return each parameter that is not the same in all runs, and its values."""
    keys = dict.fromkeys(key for run in runs for key in run.params if not key.startswith(APART))
    rows = [(key, [show(run.params.get(key, "(absent)")) for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def all_metrics(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return every metric but lists, and each run's value as text."""
    keys = sorted({key for run in runs for key in run.metrics})
    plain = [key for key in keys if not any(isinstance(r.metrics.get(key), list) for r in runs)]
    return [(key, [_figure(run.metrics.get(key)) for run in runs]) for key in plain]


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else show(value)


def show(value: Any) -> str:
    """Return a parameter or metric as text."""
    return value if isinstance(value, str) else json.dumps(value)


def warnings(runs: Sequence[Run], left_out: Mapping[str, str]) -> list[str]:
    """Return what makes the runs hard to compare, and what is missing."""
    found = [f"{text}." for key, text in COMPARED.items() if _differ(runs, key)]
    changed = {key for key, _ in differences(runs)}
    if any(key.startswith("tokenizer.") for key in changed):
        found.append("the tokenizers differ: nats a token do not compare, bits per byte do.")
    for i, stage in enumerate(EVALUATORS, start=2):
        ways = dict.fromkeys(notes(run.params.get)[i] for run in runs)
        if len(ways) > 1:
            found.append(f"{stage} did not score alike: {' / '.join(ways)}.")
    if missing := [run.name for run in runs if run.log is None]:
        names = ", ".join(missing)
        reason = "DVC's cache and remote lack it, or it is not whole, or another run's"
        found.append(f"no training log at hand of {names}: {reason}.")
    found += [
        f"the same training, so that their curves lie on one another: {', '.join(names)}."
        for names in _shared(runs)
    ]
    for run in runs:
        for reason in dict.fromkeys(run.foreign.values()):
            stages = ", ".join(stage for stage, why in run.foreign.items() if why == reason)
            found.append(f"not shown of {run.name}, as made with {reason}: {stages}.")
    found += [f"left out: {name}: {reason}." for name, reason in left_out.items()]
    return found


def _shared(runs: Sequence[Run]) -> list[list[str]]:
    """Return the names of runs whose training logs are the same, those that have such a twin."""
    groups: list[tuple[Log, list[str]]] = []
    for run in runs:
        if run.log is None:
            continue
        twins = next((names for log, names in groups if log == run.log), None)
        if twins is None:
            groups.append((run.log, [run.name]))
        else:
            twins.append(run.name)
    return [names for _, names in groups if len(names) > 1]


def _differ(runs: Sequence[Run], metric: str) -> bool:
    return len({show(v) for run in runs if (v := run.metrics.get(metric)) is not None}) > 1
