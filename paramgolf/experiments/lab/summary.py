"""What a plan's runs found, by variant: figures, means, and differences from the first variant."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from paramgolf.experiments.lab.screening import Screening, ScreenPower, screening
from paramgolf.experiments.paired import Paired, Power, Scores, paired, power, scores_by_seed

MOST_PASSES = 4  # over the text; beyond, a network learns it by heart
SPEED = "tokens_per_second"
SCORES = {"trained": "train", "packed": "packed", "sliding": "eval_sliding", "adapted": "eval_ttt"}
# figure: the stage's metric that it is
METRICS = {
    **{score: (stage, "val_bpb") for score, stage in SCORES.items()},
    "parameters": ("train", "parameters"),
    "steps": ("train", "steps"),
    "tokens": ("train", "tokens"),
    SPEED: ("train", "tokens_per_second"),
    "startup_seconds": ("train", "startup_seconds"),
    "peak_memory_bytes": ("train", "peak_memory_bytes"),
    "bytes_total": ("package", "bytes_total"),
    "headroom_bytes": ("package", "headroom_bytes"),
}
Better = Literal["higher", "lower"]
# figure: unit, what is better
UNITS: dict[str, tuple[str, Better]] = {
    **dict.fromkeys(SCORES, ("bits/byte", "lower")),
    "parameters": ("", "lower"),
    "steps": ("steps", "higher"),
    "tokens": ("tokens", "higher"),
    "passes": ("passes over the text", "lower"),
    SPEED: ("tokens/s", "higher"),
    "startup_seconds": ("s", "lower"),
    "peak_memory_bytes": ("bytes", "lower"),
    "bytes_total": ("bytes", "lower"),
    "headroom_bytes": ("bytes", "higher"),
    "wall_seconds": ("s", "lower"),
    "train_joules": ("J", "lower"),
}


@dataclass(frozen=True, slots=True)
class VariantResult:
    """A variant's runs: figures by (seed, replicate), reasons of failures, and the comparison."""

    name: str
    reason: str
    predicted: float | None
    figures: Mapping[tuple[int, int], Mapping[str, float]]
    failures: Mapping[tuple[int, int], str]
    differences: Mapping[str, Paired]
    """By score, from the first variant."""
    devices: Sequence[str]
    commits: Sequence[str]

    def mean(self, figure: str, *, beside: VariantResult | None = None) -> float | None:
        """Return the mean of a figure over the runs that have it, `beside` those of another."""
        has = self.figures if beside is None else beside.figures
        values = [
            one[figure]
            for run, one in self.figures.items()
            if figure in one and figure in has.get(run, {})
        ]
        return statistics.fmean(values) if values else None

    def warnings(self) -> Iterator[str]:
        """Yield what makes the variant's figures worth less than they look."""
        passes = max((f.get("passes", 0.0) for f in self.figures.values()), default=0.0)
        if passes > MOST_PASSES:
            too_many = f"above {MOST_PASSES} it is learned by heart"
            yield f"{self.name} read the text {passes:.1f} times: {too_many}"
        for (seed, replicate), reason in self.failures.items():
            again = f", run {replicate + 1}" if replicate else ""
            yield f"{self.name}, seed {seed}{again}, failed: {reason}"
        if (headroom := self.mean("headroom_bytes")) is not None and headroom < 0:
            yield f"{self.name} is {-headroom:,.0f} bytes above the limit"

    @property
    def furthest(self) -> str | None:
        """The last score that any run has."""
        have = [s for s in SCORES if any(s in one for one in self.figures.values())]
        return have[-1] if have else None


@dataclass(frozen=True, slots=True)
class Summary:
    """All that a plan has found so far."""

    plan: Mapping[str, Any]
    variants: Sequence[VariantResult]
    power: Power | ScreenPower
    score: str
    """The score that power and effects are of: the furthest that all variants have."""
    screening: Screening | None
    """Of a plan with factors, whose variants are not held against the first."""

    def warnings(self) -> Iterator[str]:
        """Yield what makes the figures worth less than they look."""
        for one in self.variants:
            yield from one.warnings()
        devices = dict.fromkeys(device for one in self.variants for device in one.devices)
        if len(devices) > 1:
            yield f"machines differ: {', '.join(devices)}"
        commits = dict.fromkeys(commit for one in self.variants for commit in one.commits)
        if len(commits) > 1:
            yield f"made by several commits: {', '.join(commits)}"
        kinds = {p.replicates for one in self.variants for p in one.differences.values()}
        if "same seed" in kinds:
            yield "runs of one seed differ by rounding alone: they give no interval and no p"


def summarize(content: Mapping[str, Any], name: str, only: Sequence[str] | None = None) -> Summary:
    """Return what a file of results (as Records holds it) has of a plan.

    `only` names variants, to which the first is added, which they are held against; None: all.
    """
    entry = content["plans"][name]
    plan, reference = entry["plan"], None
    screens = bool(plan.get("factors"))
    results: list[VariantResult] = []
    for variant in plan["variants"]:
        if only is not None and reference is not None and variant["name"] not in only:
            continue
        runs = [run for run in entry["runs"] if run["variant"] == variant["name"]]
        result = _result(variant, runs, content, entry["texts"][variant["name"]], reference)
        reference = None if screens else reference or result
        results.append(result)
    score, seeds = _common_score(results), len(set(plan["seeds"]))
    if screens:
        found = screening(plan, _by_run(results, score), _by_run(results, SPEED), seeds)
        return Summary(plan, results, found.power, score, found)
    groups = [_scores(one.figures, score) for one in _trained_apart(results, entry["runs"])]
    return Summary(plan, results, power(groups, seeds, plan["deviation"]), score, None)


def _by_run(results: Sequence[VariantResult], figure: str) -> dict[tuple[str, int], float]:
    """Return a figure by variant and seed, the mean where a seed was run again."""
    return {
        (one.name, seed): statistics.fmean(values)
        for one in results
        for seed, values in _scores(one.figures, figure).items()
    }


def _trained_apart(
    results: Sequence[VariantResult], runs: Sequence[Mapping[str, Any]]
) -> Iterator[VariantResult]:
    """Yield variants but those that quantize an earlier one's trainings: they scatter alike."""
    seen: set[str] = set()
    for one in results:
        keys = {run["keys"]["train"] for run in runs if run["variant"] == one.name}
        if not keys & seen:
            yield one
        seen |= keys


def _result(
    variant: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    content: Mapping[str, Any],
    text: Mapping[str, Any],
    reference: VariantResult | None,
) -> VariantResult:
    by_run = {(run["seed"], run["replicate"]): run["keys"] for run in runs}
    stages = {run: _present(content["stages"], keys) for run, keys in by_run.items()}
    figures = {run: figures_of(of_run, text["tokens"]) for run, of_run in stages.items()}
    failed = {run: _present(content["failures"], keys) for run, keys in by_run.items()}
    first_failures = {run: next(iter(of_run.values())) for run, of_run in failed.items() if of_run}
    records = [record for of_run in stages.values() for record in of_run.values()]
    devices = (r["metrics"]["device"] for r in records if "device" in r["metrics"])
    commits = (r["commit"] for r in records if "commit" in r)
    return VariantResult(
        name=variant["name"],
        reason=variant["reason"],
        predicted=variant["predicted"],
        figures=figures,
        failures={run: f"{f['stage']}: {f['reason']}" for run, f in first_failures.items()},
        differences=_differences(figures, reference),
        devices=[*dict.fromkeys(devices)],
        commits=[*dict.fromkeys(commits)],
    )


def _present(entries: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return by stage the entries under a run's `keys`; stages without an entry are left out."""
    return {stage: entries[key] for stage, key in keys.items() if entries.get(key) is not None}


def _differences(
    figures: Mapping[tuple[int, int], Mapping[str, float]], reference: VariantResult | None
) -> dict[str, Paired]:
    """Return by score how a variant differs from the reference, where both have that score."""
    if reference is None:
        return {}
    pairs = {
        score: paired(_scores(figures, score), _scores(reference.figures, score))
        for score in SCORES
    }
    return {score: found for score, found in pairs.items() if found is not None}


def figures_of(stages: Mapping[str, Mapping[str, Any]], text_tokens: int) -> dict[str, float]:
    """Return the figures of a run, those of stages that have run."""
    found = {
        name: stages[stage]["metrics"].get(key)
        for name, (stage, key) in METRICS.items()
        if stage in stages
    }
    if stages:
        found["wall_seconds"] = sum(record["wall_seconds"] for record in stages.values())
    if "train" in stages:
        found["train_joules"] = stages["train"].get("energy_joules")
        found["passes"] = stages["train"]["metrics"]["tokens"] / text_tokens
    return {name: value for name, value in found.items() if value is not None}


def _scores(figures: Mapping[tuple[int, int], Mapping[str, float]], score: str) -> Scores:
    """Return a score of runs by seed."""
    return scores_by_seed((seed, one[score]) for (seed, _), one in figures.items() if score in one)


def _common_score(results: Sequence[VariantResult]) -> str:
    """Return the last score that all have some of which have any; the first where none has."""
    scored = [one for one in results if one.furthest is not None]
    common = [s for s in SCORES if scored and all(one.mean(s) is not None for one in scored)]
    return common[-1] if common else next(iter(SCORES))


def rows(summary: Summary) -> list[dict[str, Any]]:
    """Return figures as benchmarks/results has them, beside the first variant's of equal seeds."""
    found = []
    first = summary.variants[0]
    for one in summary.variants:
        for figure, (unit, better) in UNITS.items():
            if one.mean(figure) is None:
                continue
            alone = one is first or summary.screening is not None
            reference = None if alone else first.mean(figure, beside=one)
            value = one.mean(figure, beside=None if reference is None else first)
            name = f"{summary.plan['name']}, {one.name}: {figure}"
            found.append(_row(name, value, unit, better, reference))
    return [*found, *_effect_rows(summary)]


def _effect_rows(summary: Summary) -> Iterator[dict[str, Any]]:
    """Yield the effects of factors."""
    if (found := summary.screening) is None:
        return
    for name, effect in found.score.effects.items():
        figure = f"{summary.plan['name']}, {name}: effect on {summary.score}"
        yield _row(figure, effect.mean, "bits/byte", "lower")
    for name, effect in found.speed.items():
        yield _row(f"{summary.plan['name']}, {name}: effect on speed", effect.mean, "%", "higher")


def _row(
    figure: str, value: float | None, unit: str, better: Better, reference: float | None = None
) -> dict[str, Any]:
    return {
        "figure": figure,
        "value": value,
        "unit": unit,
        "reference": reference,
        "target": None,
        "better": better,
    }


def as_json(summary: Summary) -> dict[str, Any]:
    """Return a summary for programs."""
    return {
        "plan": summary.plan["name"],
        "score": summary.score,
        "power": asdict(summary.power),
        "warnings": [*summary.warnings()],
        "effects": None if summary.screening is None else summary.screening.as_json(),
        "variants": [
            {
                "name": one.name,
                "reason": one.reason,
                "predicted": one.predicted,
                "factors": None if summary.screening is None else summary.screening.on[one.name],
                "runs": [
                    {"seed": seed, "replicate": replicate, **figures}
                    for (seed, replicate), figures in one.figures.items()
                ],
                "means": {f: m for f in UNITS if (m := one.mean(f)) is not None},
                "failures": [*one.failures.values()],
                "differences": {s: asdict(pair) for s, pair in one.differences.items()},
            }
            for one in summary.variants
        ],
    }
