"""Groups of experiments that differ only in their seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramgolf.experiments.read import SEED, Experiment
from paramgolf.experiments.statistics import Sample, sample
from paramgolf.recipes import ABSENT, as_text

APART = ("runtime.", "verify.")  # sections that change no result
LABEL_LENGTH = 60  # more only where two groups would look alike
STEPS_TOLERANCE = 0.01
SCORED = "texts scored (their bytes)"
# metrics that must be the same in all runs, and what a difference is called
ALIKE = (
    ("train.device", "machines"),
    ("train.world_size", "processes"),
    ("train.torch", "torch versions"),
    ("eval_ttt.bytes_scored", SCORED),
    ("eval_sliding.bytes_scored", SCORED),
)


@dataclass(frozen=True, slots=True)
class SeedGroup:
    """Runs that differ only in the seed; `label` says what differs from other groups."""

    label: str
    runs: tuple[Experiment, ...]

    def values(self, metric: str) -> list[float]:
        """Return a metric of each run that has it as a number."""
        return [value for run in self.runs if (value := run.number(metric)) is not None]

    def summary(self) -> dict[str, Sample]:
        """Return a Sample of each numeric metric."""
        names = sorted({name for run in self.runs for name in run.metrics})
        values = {name: self.values(name) for name in names}
        return {name: sample([*map(float, found)]) for name, found in values.items() if found}


def grouped(experiments: Sequence[Experiment]) -> list[SeedGroup]:
    """Return the groups in the order of their first runs.

    Equal runs (the same parameters, seed and metrics) count once: after `dvc exp run` an experiment
    and the workspace are one and the same run.
    """
    runs: dict[str, list[Experiment]] = {}
    for run in experiments:
        members = runs.setdefault(json.dumps(_apart_from_seed(run), sort_keys=True), [])
        if not any(_same(run, member) for member in members):
            members.append(run)
    firsts = [_apart_from_seed(members[0]) for members in runs.values()]
    labels = list(_labels(firsts))
    return [SeedGroup(label, tuple(m)) for label, m in zip(labels, runs.values(), strict=True)]


def _apart_from_seed(run: Experiment) -> dict[str, Any]:
    return {
        key: value for key, value in run.params.items() if key != SEED and not key.startswith(APART)
    }


def _same(one: Experiment, other: Experiment) -> bool:
    return (one.seed, one.metrics) == (other.seed, other.metrics)


def _labels(params: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a label for each group: the parameters that differ between groups, shortened.

    Groups whose shortened labels are equal also get, in full, the values that tell them apart.
    """
    shown = _differing(params)
    labels = [_joined([f"{k}={_short(v.get(k, ABSENT))}" for k in shown]) for v in params]
    for label, values in zip(labels, params, strict=True):
        same_label = [other for other, its in zip(params, labels, strict=True) if its == label]
        in_full = [f"{k}={as_text(values.get(k, ABSENT))}" for k in _differing(same_label)]
        yield ", ".join([label, *in_full]) or "all runs"


def _differing(params: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values are not the same everywhere."""
    keys = dict.fromkeys(key for values in params for key in values)
    return [k for k in keys if len({json.dumps(v.get(k, ABSENT)) for v in params}) > 1]


def _short(value: Any) -> str:
    text = as_text(value)
    return text if len(text) <= 24 else f"{text[:21]}..."


def _joined(words: Sequence[str]) -> str:
    text = ""
    for i, word in enumerate(words):
        longer = f"{text}, {word}" if text else word
        if text and len(longer) > LABEL_LENGTH:
            return f"{text}, and {len(words) - i} more"
        text = longer
    return text


def flags(group: SeedGroup, other: SeedGroup | None) -> Iterator[str]:
    """Yield what makes a group's scores, or two groups', hard to compare."""
    yield from _differences([*group.runs, *(other.runs if other is not None else ())])
    seeds = [run.seed for run in group.runs]
    if twice := sorted({str(seed) for seed in seeds if seeds.count(seed) > 1}):
        yield f"seeds run more than once: {', '.join(twice)}"
    if large := [run.name for run in group.runs if run.metrics.get("package.fits") is False]:
        yield f"does not fit the limit: {', '.join(large)}"
    if broken := [run.name for run in group.runs if run.metrics.get("verify.passed") is False]:
        yield f"breaks a rule (see verify): {', '.join(broken)}"


def _differences(runs: Sequence[Experiment]) -> Iterator[str]:
    """Yield the conditions that were not the same in all runs."""
    for metric, what in ALIKE:
        values = {str(v) for run in runs if (v := run.metrics.get(metric)) is not None}
        if len(values) > 1:
            yield f"{what} differ: {', '.join(sorted(values))}"
    steps = [n for run in runs if (n := run.number("train.steps")) is not None]
    if steps and max(steps) - min(steps) > STEPS_TOLERANCE * max(steps):
        yield f"steps reached differ: {min(steps):,} to {max(steps):,}"
