"""The contest's frontier: which records, in their order, were each better than all before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from paramgolf.experiments.statistics import Sample, sample, welch


@dataclass(frozen=True, slots=True)
class Step:
    """A record of the frontier, and the one before it that it beats.

    `p` is that of Welch's one-sided test of the single scores, computed here; where those of one
    are not known, the one that was published for this pair; else None.
    """

    name: str
    record: Mapping[str, Any]
    scores: Sample
    before: str | None
    improvement: float | None
    """Bits per byte."""
    p: float | None
    p_from: Literal["computed", "published"] | None


def record_sample(record: Mapping[str, Any]) -> Sample:
    """Return a record's scores; without single ones its mean, taken as exact."""
    if "seeds" in record:
        return sample([*record["seeds"].values()])
    return Sample(n=0, mean=record["mean"], deviation=None)


def frontier(records: Mapping[str, Mapping[str, Any]], *, audited: bool = True) -> list[Step]:
    """Return the steps in the order of pull requests; `audited` leaves out what nobody audited.

    Pull requests are numbered as they are opened, and their dates are not all known.
    """
    steps: list[Step] = []
    for name, record in sorted(records.items(), key=lambda item: item[1]["pull_request"]):
        if audited and record["audited"] is False:
            continue
        scores, last = record_sample(record), steps[-1] if steps else None
        if last is None:
            steps.append(Step(name, record, scores, None, None, None, None))
        elif (improvement := last.scores.mean - scores.mean) > 0:
            shown = _significance(record, scores, last)
            steps.append(Step(name, record, scores, last.name, improvement, *shown))
    return steps


def _significance(
    record: Mapping[str, Any], scores: Sample, last: Step
) -> tuple[float | None, Literal["computed", "published"] | None]:
    """Return the p of a record against the one before it, and where it is from."""
    if scores.n > 1 and last.scores.n > 1:
        test = welch(scores, last.scores)
        return (None if test is None else test.p), "computed"
    published = record.get("published_p")
    if published is not None and published["against"] == last.name:
        return published["p"], "published"
    return None, None
