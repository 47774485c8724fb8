"""Groups of experiments compared with one another or with a published record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.frontier import record_sample
from paramgolf.experiments.group import SeedGroup, flags, grouped
from paramgolf.experiments.paired import Scores, paired, power, scores_by_seed
from paramgolf.experiments.read import Experiment, Source, find, read
from paramgolf.experiments.statistics import Sample, difference, sample
from paramgolf.recipes import RECIPES, read_records, unknown_record
from paramgolf.verify.config import CONTEST_GPU, CONTEST_GPUS

SCHEMA = 1
PUBLISHED_BYTES = 151_080_891  # of the contest's validation text
SCORE = "eval_ttt.val_bpb"
EVALUATIONS = {  # of records.yaml
    "plain": "eval_sliding.val_bpb_plain",
    "sliding": "eval_sliding.val_bpb",
    "adapted": SCORE,
}


@dataclass(frozen=True, slots=True)
class Reference:
    """What the groups are compared with: a group of ours, or a record of records.yaml."""

    label: str
    scores: Sample
    group: SeedGroup | None
    record: Mapping[str, Any] | None = None


def compare(
    wanted: Sequence[str],
    *,
    against: str | None,
    score: str | None,
    everywhere: bool,
    root: Path,
    by_seed: bool = False,
) -> dict[str, Any]:
    """Return groups, their metrics, and each group's verdict against the reference.

    `score` is the metric that is tested, in bits per byte; None: the metric that the record
    submitted, or the adapted score. `against` names a record or an experiment; None: the first
    group. `by_seed` also compares runs of equal seeds, and adds the smallest difference that so
    many seeds can show. Runs that cannot be used are listed under `left_out` with the reason.
    """
    records = read_records(root / RECIPES)
    if by_seed and against in records:
        fix = "name an experiment: a record's seeds ran on other machines and code"
        raise ParamGolfError("--paired needs runs of ours", found=f"--against {against}", fix=fix)
    if score is None:
        score = EVALUATIONS[records[against]["evaluation"]] if against in records else SCORE
    named = [] if against is None or against in records else _named(against, records, root)
    sources = list(dict.fromkeys([*named, *find(wanted, root, everywhere=everywhere)]))
    scored, left_out = _usable(sources, score, root)
    _check_reference(named, left_out)
    groups = grouped(scored)
    reference = _reference(groups, against, score, records)
    by_group = [scores_by_seed((r.seed, r.metrics[score]) for r in group.runs) for group in groups]
    told = power(by_group, max(map(len, by_group))) if by_seed else None
    return {
        "schema": SCHEMA,
        "score": score,
        "against": _described(reference),
        "groups": [_row(group, reference, score) for group in groups],
        "paired": _pairs(by_group) if by_seed else None,
        "power": None if told is None else {**dataclasses.asdict(told), "says": told.sentence()},
        "left_out": left_out,
    }


def _named(against: str, records: Mapping[str, Any], root: Path) -> list[Source]:
    try:
        return find([against], root)
    except ParamGolfError:
        raise unknown_record(against, records, "record or experiment") from None


def _usable(
    sources: Sequence[Source], score: str, root: Path
) -> tuple[list[Experiment], dict[str, str]]:
    """Return the runs that can be compared, and by name why others cannot.

    It is an error if no run can be.
    """
    runs = read(sources, root)
    left_out = {run.name: why for run in runs if (why := _unusable(run, score))}
    if len(left_out) == len(runs):
        found = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        fix = "run the pipeline first, or name experiments (`dvc exp show`)"
        raise ParamGolfError("there is nothing to compare", found=found, fix=fix)
    return [run for run in runs if run.name not in left_out], left_out


def _check_reference(named: Sequence[Source], left_out: Mapping[str, str]) -> None:
    """Refuse a reference, `named` by the user, of which no run can be compared."""
    if named and all(source.name in left_out for source in named):
        found = "; ".join(f"{source.name}: {left_out[source.name]}" for source in named)
        fix = "name another experiment, or another --score"
        raise ParamGolfError("--against cannot be compared with", found=found, fix=fix)


def _unusable(run: Experiment, score: str) -> str | None:
    """Return why a run cannot be compared, or None."""
    stage = score.partition(".")[0]
    if stage in run.foreign:
        return f"its {stage} was made with {run.foreign[stage]}: `dvc repro`"
    return None if isinstance(run.metrics.get(score), float) else f"it has no {score}"


def _reference(
    groups: Sequence[SeedGroup], against: str | None, score: str, records: Mapping[str, Any]
) -> Reference | None:
    """Return a record, or the first group: it holds `against` where that is an experiment."""
    if against is None and len(groups) == 1:
        return None
    if against is not None and against in records:
        record = records[against]
        return Reference(against, record_sample(record), None, record)
    return Reference(groups[0].label, sample(groups[0].values(score)), groups[0])


def _described(reference: Reference | None) -> dict[str, Any] | None:
    if reference is None:
        return None
    described = {"label": reference.label, **dataclasses.asdict(reference.scores)}
    if reference.record is None:
        return {**described, "kind": "group"}
    return {**described, "kind": "record", "pull_request": reference.record["pull_request"]}


def _row(group: SeedGroup, reference: Reference | None, score: str) -> dict[str, Any]:
    metrics = {name: dataclasses.asdict(values) for name, values in group.summary().items()}
    other = None if reference is None else reference.group
    notes = list(flags(group, other))
    verdict = None
    if reference is not None and other is not group:
        verdict = difference(
            sample(group.values(score)),
            reference.scores,
            bytes_per_token=bytes_per_token(group, score),
            both=other is not None,
        )
        if reference.record is not None:
            notes += _record_flags(group, reference.scores, reference.record, score)
    return {
        "label": group.label,
        "experiments": [run.name for run in group.runs],
        "seeds": [run.seed for run in group.runs],
        "scores": group.values(score),
        "metrics": metrics,
        "verdict": None if verdict is None else dataclasses.asdict(verdict),
        "flags": list(dict.fromkeys(notes)),
    }


def _pairs(scores: Sequence[Scores]) -> list[dict[str, Any] | None]:
    """Return each group against the first, seed by seed; None for the first, or no equal seeds."""
    found = [None, *(paired(one, scores[0]) for one in scores[1:])]
    return [None if one is None else dataclasses.asdict(one) for one in found]


def bytes_per_token(group: SeedGroup, score: str) -> float:
    """Return the bytes per scored token: the stage's nats per token over its nats per byte."""
    stage = score.partition(".")[0]
    losses, scores = group.values(f"{stage}.val_loss"), group.values(f"{stage}.val_bpb")
    if not losses or not scores or losses[0] <= 0 or scores[0] <= 0:
        raise ParamGolfError(f"{stage} has no val_loss and val_bpb above 0", where=group.label)
    return losses[0] / (scores[0] * math.log(2))


def _record_flags(
    group: SeedGroup, scores: Sample, record: Mapping[str, Any], score: str
) -> Iterator[str]:
    evaluation = record["evaluation"]
    count = record["training"]["gpus"] if "training" in record else CONTEST_GPUS
    if score != EVALUATIONS[evaluation]:
        yield f"score: ours {score}, the record's is {evaluation} ({EVALUATIONS[evaluation]})"
    if scores.n == 0:
        yield "the record's single scores are not known: its mean is taken as exact"
    metrics = (run.metrics for run in group.runs)
    machines = {(one.get("train.world_size"), one.get("train.device")): None for one in metrics}
    if any(gpus != count or CONTEST_GPU not in str(device) for gpus, device in machines):
        ours = ", ".join(f"{gpus} x {device}" for gpus, device in machines)
        yield f"machine: ours {ours}, the record's {count} x {CONTEST_GPU}"
    scored = group.values("eval_sliding.bytes_scored")  # none of a run that was only trained
    # tokenizers cut the end of the contest's text slightly differently
    if others := [n for n in scored if not math.isclose(n, PUBLISHED_BYTES, rel_tol=1e-3)]:
        yield f"text: scored on {others[0]:,} bytes, the record on {PUBLISHED_BYTES:,}"
